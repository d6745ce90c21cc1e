"""docs/simulate.md: its commands run, on fewer requests, and print what it shows, but for the numbers."""

import re
from pathlib import Path

import pytest

from sarathi_jax.cli.main import main

PAGE = (Path(__file__).parent.parent.parent / "docs" / "simulate.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```sh\nsarathi-jax (simulate [^\n]*)\n```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```sh\nsarathi-jax (simulate .*)\n```", PAGE)
SMALLER = {
    "run": ["--num-requests", "4"],
    "capacity": ["--num-requests", "4", "--granularity", "1", "--processes", "1", "--max-num-seqs", "1"],
}


def words_of(text: str) -> list[list[str]]:
    """Of each line, what is no number."""
    return [re.findall(r"[A-Za-z_][A-Za-z_0-9-]*", line) for line in text.splitlines()]


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str], command: str, shown: str) -> None:
    words = command.split()
    assert main([*words, *SMALLER[words[1]]]) == 0
    printed = words_of(capsys.readouterr().out)
    assert [line for line in printed if line[:1] != ["note"]] == words_of(shown)


def test_every_command_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        if command not in [each for each, _ in SHOWN]:
            words = command.split()
            assert main([*words, *SMALLER[words[1]]]) == 0


def test_both_commands_are_on_the_page() -> None:
    assert [command.split()[1] for command, _ in SHOWN] == ["run", "capacity"]
