"""docs/sharding.md: its code runs, and its numbers are those of the example."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "sharding.md").read_text(encoding="utf-8")


def test_its_code_gives_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        run_block(block, names)
    printed = re.fullmatch(r"(\d+) ms a token, KV of [\d,]+ tokens\n", capsys.readouterr().out)
    assert printed
    assert f"a token takes {printed[1]} ms among decodes" in PAGE


def run_block(block: str, names: dict[str, Any]) -> None:
    code = compile(ast.parse(block), "docs/sharding.md", "exec")
    exec(code, names)


def test_the_example_prints_its_numbers() -> None:
    """Compiling takes minutes; what the cost model says is the same without it, but for temporary memory and with it the tokens of KV."""
    command = [sys.executable, "examples/sharding_strategies.py", "--no-compile"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(";")[0] for line in done.stdout.splitlines()]
    assert len(lines) == 9
    assert [line for line in lines if line not in PAGE] == []


def test_every_axis_of_the_rules_has_its_row() -> None:
    from sarathi_jax.sharding.rules import MEGATRON

    rows = " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))
    assert set(MEGATRON) <= set(re.findall(r"`(\w+)`", rows))
