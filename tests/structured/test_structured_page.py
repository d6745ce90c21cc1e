"""The page about structured output keeps its word: its example prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "structured-output.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says() -> None:
    program, said = (re.findall(rf"```{name}\n(.*?)```", PAGE, re.DOTALL)[0] for name in ("python", "text"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.returncode) == (said, 0), done.stderr
