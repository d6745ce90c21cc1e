"""Calls of tools out of text: every form, whatever the cuts between deltas, and in a time that grows as the text does."""

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.text.tool_call_parser import CallDelta, ToolCallParser
from sarathi_jax.text.tool_calls import FORMATS, detect_format

NAMES = ("get", "get_weather", "set-timer")


def parser_of(form: str) -> ToolCallParser:
    numbers = itertools.count()
    return ToolCallParser(FORMATS[form], NAMES, lambda: f"id{next(numbers)}")


def parse(form: str, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str, str]]]:
    """Content; and id, name and arguments of each call."""
    parser, content, calls = parser_of(form), "", []
    for delta in [delta for piece in pieces for delta in parser.push(piece)] + parser.finish():
        if isinstance(delta, str):
            assert delta
            content += delta
        elif delta.call_id is not None:
            assert delta.number == len(calls)
            calls.append((delta.call_id, str(delta.name), delta.arguments))
        else:
            assert delta.number == len(calls) - 1
            assert delta.arguments
            calls[-1] = (*calls[-1][:2], calls[-1][2] + delta.arguments)
    assert parser.num_calls == len(calls)
    return content, calls


def call_text(form: str, name: str, arguments: Any) -> str:
    return json.dumps({"name": name, FORMATS[form].arguments_key: arguments})


def written(form: str, calls: Sequence[tuple[str, Any]]) -> str:
    """As the models' own templates write calls of a conversation."""
    texts = [call_text(form, *call) for call in calls]
    if form == "hermes":
        return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)
    return f"[TOOL_CALLS][{', '.join(texts)}]" if form == "mistral" else texts[0]


def cuts(text: str, places: Sequence[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3)
PLACES = st.lists(st.integers(0, 10_000), max_size=20)
# What looks like calls, and mostly is none.
SCRAPS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[", "]", "{", "}", ":", ",", " ", "\n", "<", "\\", '"', "a"),
        *('"name"', '"get"', '"arguments"', '"parameters"'),
        *('{"name": "get", "arguments": {', '{"name": "get", "parameters": {'),
    ]
)


@settings(max_examples=150)
@given(form=st.sampled_from(sorted(FORMATS)), calls=CALLS, before=st.text(max_size=9), places=PLACES)
def test_calls_are_found_however_they_are_cut(form: str, calls: Any, before: str, places: list[int]) -> None:
    if not FORMATS[form].begin:  # a call is the whole output
        calls, before = calls[:1], " \n"
    content, found = parse(form, cuts(before + written(form, calls), places))
    assert [(name, json.loads(arguments)) for _, name, arguments in found] == calls
    assert len({call_id for call_id, _, _ in found}) == len(calls)
    assert content == (before if before.strip(" \t\r\n") else "")


@settings(max_examples=300)
@given(form=st.sampled_from(sorted(FORMATS)), scraps=st.lists(SCRAPS, max_size=30), places=PLACES)
def test_any_text_says_the_same_however_it_is_cut(form: str, scraps: list[str], places: list[int]) -> None:
    text = "".join(scraps)
    whole = parse(form, [text])
    assert parse(form, cuts(text, places)) == whole
    assert parse(form, list(text)) == whole


@settings(max_examples=200)
@given(form=st.sampled_from(sorted(FORMATS)), text=st.text(max_size=60) | st.lists(SCRAPS, max_size=12).map("".join))
def test_what_is_no_call_is_content(form: str, text: str) -> None:
    content, calls = parse(form, list(text))
    if not calls:
        assert content == text
    else:
        assert len(content) + sum(len(name) + len(arguments) for _, name, arguments in calls) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": 5}</tool_call>',
        '<tool_call>{"arguments": {}, "name": "get"}</tool_call>',
        "<tool_call>get()</tool_call>",
        "a <tool_cal",
        "a <tool_call",
        "<<tool_call",
        '<tool_call>\n{"name": "get", "arg',
    ],
)
def test_half_calls_and_wrong_ones_are_content(text: str) -> None:
    assert parse("hermes", list(text)) == (text, [])
    assert parse("hermes", [text]) == (text, [])


def test_a_call_after_a_wrong_one_is_found() -> None:
    good = '<tool_call>{"name": "get", "arguments": {}}</tool_call>'
    assert parse("hermes", ["<tool_call><tool_call>" + good]) == ("<tool_call><tool_call>", [("id0", "get", "{}")])
    good = '[TOOL_CALLS][{"name": "get", "arguments": {}}]'
    assert parse("mistral", ["[TOOL_CALLS][" + good]) == ("[TOOL_CALLS][", [("id0", "get", "{}")])


def test_more_members_of_a_call_are_left_out() -> None:
    text = '[TOOL_CALLS][{"name": "get", "arguments": {"a": "}]"}, "id": "x}"}, {"name": "get", "arguments": {}}] end'
    assert parse("mistral", list(text)) == (" end", [("id0", "get", '{"a": "}]"}'), ("id1", "get", "{}")])


def test_nothing_is_held_longer_than_it_must() -> None:
    parser = parser_of("hermes")
    assert parser.push("Let me see") == ["Let me see"]
    assert parser.push(". <") == [". "]
    assert parser.push("b> <too") == ["<b> "]
    assert parser.push('l_call>\n{"name": "get", "arguments":') == []
    assert parser.push(' {"a": [1') == [CallDelta(0, "id0", "get", '{"a": [1')]
    assert parser.is_cut
    assert parser.push("2]") == [CallDelta(0, None, None, "2]")]
    assert parser.push('}, "x": {}') == [CallDelta(0, None, None, "}")]
    assert not parser.is_cut
    assert parser.push("}\n</tool_") == []
    assert parser.finish() == []


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("first", ["", "<tool_call>", "[TOOL_CALLS]", '{"name"'])
@pytest.mark.parametrize(
    "part",
    ["{", "<tool_call>", "[TOOL_CALLS][", '{"name": "get', " ", '<tool_call>{"name": "get", "arguments": {"', "</tool_call>", "\n<", '[TOOL_CALLS][{"name":"get","arguments":{}},', "<tool_call> [TOOL_CALLS] ["],
)  # fmt: skip
def test_the_time_grows_as_the_text_does(form: str, first: str, part: str) -> None:
    """At four times the length it takes some four times as long; were it quadratic, sixteen times. The best of a few is little disturbed by what else runs."""

    def seconds(num_characters: int) -> float:
        text = first + (part * num_characters)[:num_characters]
        taken = []
        for _ in range(3):
            parser, started_s = parser_of(form), time.thread_time()
            for start in range(0, len(text), 7):
                parser.push(text[start : start + 7])
            parser.finish()
            taken.append(time.thread_time() - started_s)
        return min(taken)

    short_s, double_s, long_s = (seconds(num) for num in (4_000, 8_000, 16_000))
    assert double_s < 4 * short_s + 1e-3
    assert long_s < 8 * short_s + 1e-3
    assert long_s < 1.0


def test_forms_are_told_by_templates() -> None:
    assert detect_format("{% for m in messages %}{{ m.content }}{% endfor %}") is None
    assert detect_format("{% if tools %}... <tool_call>\n{{ call | tojson }}") == "hermes"
    assert detect_format("{% if tools %} [AVAILABLE_TOOLS] {{ tools }} [TOOL_CALLS] [") == "mistral"
    assert detect_format("{% if tools %}[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}") is None
    assert (
        detect_format("""{% if tools %}{{- '{"name": "' + call.name + '", ' }}{{- '"parameters": ' }}""")
        == "llama3_json"
    )
    assert detect_format("{% if tools %}<tool_call><function={{ name }}>") is None
    assert detect_format("{% if tools %}Tools: {{ tools }}") == "json"
