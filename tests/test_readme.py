"""The README keeps its word: its example prints what it says, and the commands, targets and pages it names are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sarathi_jax.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    README,
    *(path.read_text(encoding="utf-8") for path in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]),
]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_prints_what_the_readme_says() -> None:
    program, said = code_blocks("python")[0], code_blocks("text")[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.returncode) == (said, 0), done.stderr


def test_the_example_is_eight_lines() -> None:
    assert len([line for line in code_blocks("python")[0].splitlines() if line]) <= 8


@pytest.mark.parametrize("word", re.findall(r"sarathi-jax (generate|chat|(?:bench|simulate) \w+|[a-z]+)", README))
def test_its_commands_are_there(word: str) -> None:
    assert word in COMMANDS


def test_its_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for page in PAGES for word in re.findall(r"(?:^|`)make ([a-z]+)", page, re.MULTILINE)}
    assert {"demo", "test"} <= named <= targets


def test_the_links_of_every_page_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
