"""Flags made from a dataclass's fields: what is read, what help says, and how a wrong word is answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pytest

from sarathi_jax.cli.options import Parser, UsageError, add_fields, given_fields
from sarathi_jax.config import EngineConfig
from sarathi_jax.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Options:
    """One field of each kind."""

    token_budget: int = field(default=512, metadata={"help": "tokens of a step, 100 % of them"})
    max_tokens: int | None = 16
    num_pages: int | None = None
    share: float = 0.9
    dtype: Literal["auto", "float32"] = "auto"
    mesh: str | None = None
    caching: bool = True
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    bias: Mapping[int, float] | None = None
    derived: int = field(default=0, init=False)


def parser() -> Parser:
    made = Parser(prog="try")
    add_fields(made, Options, "all")
    return made


def read(line: str) -> dict[str, Any]:
    return given_fields(parser().parse(line.split()), Options)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("", {}),
        ("--token-budget 64 --share 0.5", {"token_budget": 64, "share": 0.5}),
        ("--max-tokens none --num-pages 7", {"max_tokens": None, "num_pages": 7}),
        ("--no-caching --dtype float32 --mesh tensor=4", {"caching": False, "dtype": "float32", "mesh": "tensor=4"}),
        ("--caching --stop END --stop none", {"caching": True, "stop": ["END", "none"]}),
        ("--stop-ids 3 --stop-ids 4", {"stop_ids": [3, 4]}),
        ("--bias 5=1.5,6=-2 --bias 7=0", {"bias": {5: 1.5, 6: -2.0, 7: 0.0}}),
    ],
)
def test_only_what_is_given_is_read(line: str, fields: dict[str, Any]) -> None:
    assert read(line) == fields


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--tokn-budget 3", "unknown option --tokn-budget: did you mean --token-budget? See `try --help`."),
        ("--token 3", "unknown option --token: did you mean"),
        ("extra", "unknown argument extra. See `try --help`."),
        ("--max-tokens many", "argument --max-tokens: invalid int value: 'many'. See"),
        ("--num-pages none", "argument --num-pages: invalid int value: 'none'. See"),
        ("--dtype int8", "argument --dtype: invalid choice: 'int8'"),
        ("--bias 5", "argument --bias: invalid KEY=VALUE value: '5'. See"),
        ("--share", "argument --share: expected one argument. See"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(line: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(line)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_commands_own_defaults_hold_unless_given() -> None:
    args = parser().parse(["--share", "0.5"])
    assert given_fields(args, Options, defaults={"share": 0.1, "num_pages": 3}) == {"share": 0.5, "num_pages": 3}


def test_a_field_that_may_be_none_takes_none_only_over_another_default() -> None:
    made = Parser(prog="try")
    add_fields(made, Options, "all", defaults={"max_tokens": None})
    with pytest.raises(UsageError, match="invalid int value: 'none'"):
        made.parse(["--max-tokens", "none"])


@pytest.mark.parametrize("config", [EngineConfig, SamplingParams])
def test_every_option_says_what_it_is(config: type[Any]) -> None:
    assert [field.name for field in fields(config) if not field.metadata.get("help")] == []


def test_skipped_fields_have_no_flag() -> None:
    made = Parser(prog="try")
    add_fields(made, Options, "all", skip=("share",))
    with pytest.raises(UsageError, match="unknown option --share"):
        made.parse(["--share", "1"])


def test_help_names_defaults_and_choices_and_no_derived_field() -> None:
    text = " ".join(parser().format_help().split())
    assert "--token-budget N tokens of a step, 100 % of them (default: 512)" in text
    assert "--dtype auto|float32" in text
    assert "--caching, --no-caching" in text
    assert "derived" not in text
