"""How models write tool calls, by their chat templates; and grammars that make them write calls that keep to the tools' JSON schemas."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.grammar import JSON_OPTIONS

type Choice = Literal["auto", "required"]

MAX_CALLS = 32


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """begin: the text that says that calls follow; empty: a call is the whole output. end: the text after each call. is_list: calls are in brackets, with commas.

    id_chars: how long ids of calls are; some templates take no others.
    """

    begin: str = ""
    end: str = ""
    is_list: bool = False
    arguments_key: str = "arguments"
    id_chars: int = 29


FORMATS: Mapping[str, ToolCallFormat] = {
    "json": ToolCallFormat(),
    "llama3_json": ToolCallFormat(arguments_key="parameters"),
    "hermes": ToolCallFormat(begin="<tool_call>", end="</tool_call>"),
    "mistral": ToolCallFormat(begin="[TOOL_CALLS]", is_list=True, id_chars=9),
}


def detect_format(template: str) -> str | None:
    """The name of the format that a chat template shows to the model, by its source; None if it does not tell the model of tools, or in a format not known here."""
    if "tools" not in template or any(mark in template for mark in ("[ARGS]", "<function=", "<arg_key>")):
        return None
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    return "llama3_json" if '"parameters": ' in template else "json"


@dataclass(frozen=True, slots=True)
class Tool:
    """parameters: JSON schema of an object, as JSON text; see `closed_schema`."""

    name: str
    parameters: str


def closed_schema(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """A tool's schema as its calls have to keep to it: an object, with no properties but those that it names, unless it says more about others."""
    if schema is None:
        schema = {}
    closed: dict[str, Any] = {"type": "object", **schema, "x-guidance": JSON_OPTIONS}
    open_words = {
        "additionalProperties",
        "patternProperties",
        "unevaluatedProperties",
        "$ref",
        "allOf",
        "anyOf",
        "oneOf",
    }
    if ("properties" in schema or not schema) and not open_words & set(schema):
        closed |= {"properties": schema.get("properties", {}), "additionalProperties": False}
    return closed


def calls_grammar(
    form: ToolCallFormat,
    tools: Sequence[Tool],
    choice: Choice,
    *,
    is_single: bool,
    answer: StructuredOutput | None = None,
    special_id: Callable[[str], int | None],
) -> str:
    """Lark text, as llguidance reads it, of outputs that call these tools.

    choice: required: an output is calls alone; auto: it is any text, with or without calls; or calls or `answer`, JSON, where the form has a `begin`.
    is_single: at most one call.
    special_id: the id of a special token with this text, if there is one: text in a grammar never is a special token.
    """
    return _Writer(form, tools, special_id).grammar(choice, is_single or not form.begin, answer)


class _Writer:
    def __init__(self, form: ToolCallFormat, tools: Sequence[Tool], special_id: Callable[[str], int | None]) -> None:
        self._form = form
        self._tools = tools
        self._special_id = special_id

    def grammar(self, choice: Choice, is_single: bool, answer: StructuredOutput | None) -> str:
        rules = [f"calls: {self._calls(is_single)}", *self._call_rules()]
        if choice == "required":
            return self._text("calls", rules)
        if answer is not None:
            assert self._form.begin, "a call could be an answer, and the first terminal that matches decides"
            return self._text("calls | answer", [*rules, f"answer: {_answer(answer)}"])
        if not self._form.begin:
            names = "|".join(re.escape(tool.name) for tool in self._tools)
            # What begins as a call is one: no text goes on as its arguments do.
            return self._text("calls | TEXT", [*rules, rf"TEXT: /(.|\n)*/ & ~/{self._head(names)}\{{(.|\n)*/"])
        return self._text(*self._text_and_calls(is_single, rules))

    def _text(self, start: str, rules: list[str]) -> str:
        return "\n".join([f"start: {start}", *rules])

    def _text_and_calls(self, is_single: bool, rules: list[str]) -> tuple[str, list[str]]:
        """Text, in which each `begin` begins calls."""
        begin, many = self._form.begin, "?" if is_single or self._form.is_list else "*"
        after = f"after: {self._after_begin(is_single)}"
        if (token_id := self._special_id(begin)) is not None:
            return f"(TEXT <[{token_id}]> after){many} TEXT", [*rules, after, r"TEXT: /(.|\n)*/"]
        mark = re.escape(begin).replace("/", r"\/")
        head = rf"head[lazy]: /(.|\n)*{mark}/"
        return f"(head after){many} TEXT", [*rules, after, head, rf"TEXT: /(.|\n)*/ & ~/(.|\n)*{mark}(.|\n)*/"]

    def _calls(self, is_single: bool) -> str:
        begin = self._mark(self._form.begin)
        one = f"{begin} {self._after_begin(is_single)}"
        return one if is_single or self._form.is_list else f'{one} ("\\n"? {one}){{0,{MAX_CALLS - 1}}}'

    def _after_begin(self, is_single: bool) -> str:
        if self._form.is_list:
            more = "" if is_single else f' ("," call){{0,{MAX_CALLS - 1}}}'
            return f'" "? "[" call{more} "]"'
        return f'call "\\n"? {self._mark(self._form.end)}' if self._form.end else "call"

    def _mark(self, text: str) -> str:
        if not text:
            return ""
        token_id = self._special_id(text)
        return json.dumps(text) if token_id is None else f"<[{token_id}]>"

    def _call_rules(self) -> list[str]:
        ways = " | ".join(f"HEAD_{place} args_{place}" for place in range(len(self._tools)))
        rules = [f'call: ({ways}) "}}"']
        for place, tool in enumerate(self._tools):
            rules += [f"HEAD_{place}: /{self._head(re.escape(tool.name))}/", f"args_{place}: %json {tool.parameters}"]
        return rules

    def _head(self, names: str) -> str:
        """A call up to its arguments: one terminal, since the longest one that matches is taken, and text matches everything."""
        return rf'[ \n]{{0,2}}\{{ ?"name": ?"({names})", ?"{self._form.arguments_key}": ?'


def _answer(answer: StructuredOutput) -> str:
    schema = answer.json_schema if isinstance(answer.json_schema, str) else '{"type":"object"}'
    return "%json " + json.dumps({**json.loads(schema), "x-guidance": JSON_OPTIONS}, ensure_ascii=False)
