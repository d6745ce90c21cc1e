"""docs/plan.md shows what the command prints."""

import re
from pathlib import Path

import pytest

from sarathi_jax.cli.main import main

PAGE = (Path(__file__).parent.parent.parent / "docs" / "plan.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\nsarathi-jax (plan .*)\n```", PAGE)
OUTPUTS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def test_the_table_of_layouts_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMANDS[0].split()) == 0
    assert capsys.readouterr().out == OUTPUTS[0]


def test_one_layout_is_what_is_printed_but_for_what_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    """Compiling takes a minute. Temporary memory is compiled, and with it the tokens of KV change."""
    assert main([*COMMANDS[1].split(), "--no-compile"]) == 0
    shown = set(OUTPUTS[1].splitlines())
    printed = [line for line in capsys.readouterr().out.splitlines() if "temporary" not in line and "KV" not in line]
    assert len(printed) > 20
    assert [line for line in printed if line not in shown] == []
