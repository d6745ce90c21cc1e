"""Structures from strangers: over a limit, of no meaning, never satisfied, or expensive. Each costs one clear error within its limits, or is harmless."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.grammar_checker import GrammarChecker
from sarathi_jax.text.tokenizer import Tokenizer

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {},
            "structured must have exactly one of json_schema, json_object, regex, choice, grammar, got none of them: ",
        ),
        (
            {"regex": "a", "json_object": True},
            "structured must have exactly one of .*, got json_object, regex: leave out",
        ),
        ({"json_object": 1}, "json_object must be True or False, got 1: "),
        ({"json_schema": ""}, "json_schema must be JSON, got 'JSONDecodeError"),
        ({"json_schema": "[1"}, 'json_schema must be JSON, got "JSONDecodeError'),
        ({"json_schema": True}, "json_schema must be a JSON object, got True: "),
        ({"json_schema": "false"}, "json_schema must be a JSON object, got False: "),
        ({"json_schema": "[]"}, r"json_schema must be a JSON object, got \[\]: "),
        ({"json_schema": nested(10_000)}, "json_schema must be (at most 65536 bytes of JSON|JSON), got "),
        ({"json_schema": nested(6_000)}, "json_schema must be (JSON|at most 32 levels deep), got "),
        ({"json_schema": nested(32)}, "json_schema must be at most 32 levels deep, got 'level 33': "),
        ({"json_schema": {"a": ENDLESS}}, "json_schema must be at most 32 levels deep, got 'level 33': "),
        (
            {"json_schema": {"enum": list(range(10**6))}},
            "json_schema must be without an enum of more than 500 values, got 1000000",
        ),
        ({"json_schema": {"x": list(range(2000))}}, "json_schema must be of at most 2000 values, got 'more': "),
        ({"json_schema": {"const": "x" * 65536}}, "json_schema must be at most 65536 bytes of JSON, got 65548: "),
        (
            {"json_schema": {"$ref": "http://example.org/s"}},
            r"json_schema must be without \$ref to other documents, got 'http",
        ),
        (
            {"json_schema": {"pattern": "a" * 513}},
            "json_schema must be without patterns of over 512 characters, got 513: ",
        ),
        (
            {"json_schema": {"patternProperties": {"a" * 600: {}}}},
            "json_schema must be without patterns of over 512 char",
        ),
        ({"json_schema": {"minimum": float("nan")}}, "json_schema must be plain JSON, got "),
        ({"json_schema": {"const": {1, 2}}}, "json_schema must be plain JSON, got "),
        ({"json_schema": {"const": "\ud800"}}, "json_schema must be valid Unicode, got "),
        ({"regex": ""}, "regex must be a string that is not empty, got '': "),
        ({"regex": 5}, "regex must be a string that is not empty, got 5: "),
        ({"regex": "a" * 10**5}, "regex must be at most 512 characters, got 100000: "),
        ({"choice": "yes"}, "choice must be a list of strings, got 'yes': "),
        ({"choice": []}, r"choice must be 1 to 500 strings, got 0: "),
        ({"choice": ["a"] * 501}, "choice must be 1 to 500 strings, got 501: "),
        ({"choice": ["a", ""]}, "choice must be a string that is not empty, got '': "),
        ({"choice": ["a" * 20_000]}, "choice must be at most 16384 bytes in all, got 20000: "),
        ({"grammar": "a" * 65537}, "grammar must be at most 65536 bytes, got 65537: "),
    ],
)
def test_what_is_over_a_limit_or_of_no_form_is_refused_at_once(fields: dict[str, Any], message: str):
    started_s = time.monotonic()
    with pytest.raises(RequestError, match="^" + message) as caught:
        StructuredOutput(**fields)
    assert caught.value.param in {*fields, "structured"}
    assert len(str(caught.value)) < 500
    assert time.monotonic() - started_s < 1.0


def test_limits_are_not_reached_by_what_is_at_them():
    StructuredOutput(json_schema=nested(31))
    StructuredOutput(json_schema={"enum": list(range(500))})
    StructuredOutput(regex="a" * 512)
    StructuredOutput(choice=("a",) * 500)
    StructuredOutput(
        json_schema={"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/$defs/a", "$defs": {"a": {}}}
    )


def test_a_schema_is_kept_as_text_in_its_own_order():
    schema = {"type": "object", "properties": {"b": {"const": "é"}, "a": {}}}
    assert StructuredOutput(json_schema=schema).json_schema == json.dumps(
        schema, separators=(",", ":"), ensure_ascii=False
    )
    assert StructuredOutput(json_schema=schema) == StructuredOutput(json_schema=json.dumps(schema, indent=2))
    assert hash(StructuredOutput(json_schema=schema)) == hash(StructuredOutput(json_schema=json.dumps(schema)))


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {"min_tokens": 2}, {"allowed_token_ids": (3,)}])
def test_options_that_contradict_a_structure_are_refused(options: dict[str, Any]):
    name = next(iter(options))
    with pytest.raises(RequestError, match=rf"^{name} must be left out with structured, which decides") as caught:
        SamplingParams(structured=StructuredOutput(regex="a"), **options)
    assert caught.value.param == name
    with pytest.raises(RequestError, match=r"^structured must be a StructuredOutput, got \{'regex': 'a'\}: "):
        SamplingParams(structured={"regex": "a"})  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def checker(tokenizer: Tokenizer) -> Iterator[GrammarChecker]:
    checker = GrammarChecker(tokenizer.to_json(), 512, (2, 5))
    yield checker
    checker.close()


REFUSED = [
    ({"regex": "(?<=a)b"}, "regex"),
    ({"regex": "(?!a)b"}, "regex"),
    ({"regex": r"(a)\1"}, "regex"),
    ({"regex": "[a"}, "regex"),
    ({"regex": "a{2,1}"}, "regex"),
    ({"json_schema": {"type": "nope"}}, "json_schema"),
    ({"json_schema": {"pattern": 5}}, "json_schema"),
    ({"json_schema": {"type": "string", "minLength": 5, "maxLength": 2}}, "json_schema"),
    ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 2}}, "json_schema"),
    ({"json_schema": {"enum": []}}, "json_schema"),
    ({"json_schema": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "json_schema"),
    ({"json_schema": {"$ref": "#"}}, "json_schema"),
    (
        {"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}},
        "json_schema",
    ),
    ({"json_schema": {"$ref": "#/$defs/missing"}}, "json_schema"),
    ({"json_schema": {"not": {"type": "string"}}}, "json_schema"),
    ({"json_schema": {"type": "object", "properties": {"a": False}, "required": ["a"]}}, "json_schema"),
    ({"grammar": "start: nowhere"}, "grammar"),
    ({"grammar": "start: start start"}, "grammar"),
    ({"grammar": "not a grammar"}, "grammar"),
    ({"grammar": 'start: %json {"$ref": "http://example.org/s"}'}, "grammar"),
]
HARMLESS = [
    {"regex": "(a+)+b"},
    {"regex": "(a|a)*c"},
    {"regex": ".{1,100000}"},
    {"regex": "((a{0,100}){0,100}){0,100}"},
    {"regex": "(.*a.{900}){900}"},
    {"json_schema": {}},
    {"json_schema": {"type": "string", "pattern": "^(a+)+$"}},
    {"json_schema": {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}},
    {"json_schema": {"type": "array", "maxItems": 10**9, "minItems": 10**8}},
    {"grammar": 'start: "a" start'},
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_means_nothing_or_is_never_satisfied_is_refused(
    checker: GrammarChecker, fields: dict[str, Any], param: str
):
    started_s = time.monotonic()
    rule = rf"^{param} must be one that can be compiled and satisfied, got .+: correct it\.$"
    for _ in range(2):  # the second time from what is remembered
        with pytest.raises(RequestError, match=rule) as caught:
            checker.check(StructuredOutput(**fields))
        assert caught.value.param == param
        assert len(str(caught.value)) < 300
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize("fields", HARMLESS)
def test_what_hurts_others_is_harmless_here(checker: GrammarChecker, fields: dict[str, Any], factory: Any, ids_of: Any):
    """It compiles, and no token takes long, for a while on the way that the grammar's first allowed token leads."""
    structured = StructuredOutput(**fields)
    started_s = time.monotonic()
    try:
        checker.check(structured)
    except RequestError:
        return  # over a limit of llguidance's: as good
    constraint = factory.make(structured)
    for _ in range(40):
        if constraint.is_ended or not constraint.accept(ids_of(constraint.mask())[-1]):
            break
    assert time.monotonic() - started_s < 10


def test_a_grammar_that_takes_too_long_ends_its_process_alone(tokenizer: Tokenizer):
    slow = GrammarChecker(tokenizer.to_json(), 512, (2, 5), deadline_s=1e-4)
    endless = StructuredOutput(
        json_schema={"anyOf": [{"type": "string", "pattern": f"(a|b)*{n}" * 20} for n in range(200)]}
    )
    with pytest.raises(
        RequestError, match=r"got more than 0\.0001 s or 256 MiB to compile \((no answer in|a worker that was)"
    ):
        slow.check(endless)
    slow.close()


def test_a_grammar_that_takes_too_much_memory_ends_its_process_alone(tokenizer: Tokenizer):
    small = GrammarChecker(tokenizer.to_json(), 512, (2, 5), growth_bytes=1 << 20)
    large = StructuredOutput(json_schema={"enum": [{"a": f"{n}" * 100} for n in range(160)]})
    with pytest.raises(
        RequestError, match=r"got more than 2 s or 1 MiB to compile \(a worker that was ended by its limits\)"
    ):
        small.check(large)
    small.check(StructuredOutput(regex="ab"))
    small.close()


def test_many_structures_leave_neither_memory_nor_files_behind(checker: GrammarChecker, factory: Any):
    """Seven hundred of them, checked and compiled: what a server sees of a client that never sends the same twice."""

    def resident_kib(process: str) -> int:
        status = Path(f"/proc/{process}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    def send(numbers: range) -> None:
        for number in numbers:
            structured = StructuredOutput(
                json_schema={"type": "object", "properties": {f"p{number}": {"type": "string"}}}
            )
            checker.check(structured)
            factory.make(structured)

    send(range(300))  # fills what is kept
    worker = str(checker._process.process_id)
    before = resident_kib("self"), resident_kib(worker)
    send(range(300, 1000))
    after = resident_kib("self"), resident_kib(worker)
    assert after[0] - before[0] < 8 * 1024
    assert after[1] - before[1] < 8 * 1024
    assert str(checker._process.process_id) == worker
