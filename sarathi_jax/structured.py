"""What a request's output has to be: JSON of a schema, any JSON object, text of a regex or a grammar, or one of several strings.

Checked once, here, for its form and its size; whether a regex, a schema or a grammar means anything is found out by `text.grammar_checker`, in a process of its own.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sarathi_jax.errors import RequestError

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_NODES = 2000
MAX_ENUM = 500
MAX_REGEX_CHARS = 512
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_CHOICES = 500
MAX_CHOICE_BYTES = 16 * 1024


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """Exactly one of these. JSON comes on one line, with one space at most after a comma or a colon.

    json_schema: as a mapping or as JSON text; kept as JSON text, with its properties in the order they came in, which is the order of the output.
    Raises: RequestError, with `param`, if there is none or several, or one is not of its form or over its limit.
    """

    json_schema: str | Mapping[str, Any] | None = _field(None, "the output is JSON of this JSON schema")
    json_object: bool = _field(False, "the output is a JSON object")
    regex: str | None = _field(None, "the output matches this regular expression from its start to its end")
    choice: tuple[str, ...] = _field((), "the output is one of these; repeat it for several")
    grammar: str | None = _field(None, "the output is of this grammar, in llguidance's form of Lark")

    def __post_init__(self) -> None:
        given = [name for name, unset in _UNSET.items() if getattr(self, name) != unset]
        if len(given) != 1:
            got = ", ".join(given) or "none of them"
            raise RequestError(
                f"structured must have exactly one of {', '.join(_UNSET)}, got {got}: leave out the others.",
                param="structured",
            )
        object.__setattr__(self, given[0], _CHECKS[given[0]](getattr(self, given[0])))

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return next(name for name, unset in _UNSET.items() if getattr(self, name) != unset)


def _checked_schema(schema: Any) -> str:
    """The schema as JSON text."""
    schema = _parse(schema) if isinstance(schema, str) else schema
    if not isinstance(schema, Mapping):
        raise _wrong("json_schema", "a JSON object", schema, 'pass one, such as {"type": "object"}')
    for number, (value, depth) in enumerate(_nodes(schema)):
        if depth > MAX_SCHEMA_DEPTH:
            raise _wrong("json_schema", f"at most {MAX_SCHEMA_DEPTH} levels deep", f"level {depth}", "nest it less")
        if number >= MAX_SCHEMA_NODES:
            raise _wrong("json_schema", f"of at most {MAX_SCHEMA_NODES} values", "more", "use a smaller schema")
        if isinstance(value, Mapping):
            _check_keywords(value)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise _wrong("json_schema", "plain JSON", f"{error}", "convert its values") from error
    num_bytes = _check_text("json_schema", text)
    if num_bytes > MAX_SCHEMA_BYTES:
        raise _wrong("json_schema", f"at most {MAX_SCHEMA_BYTES} bytes of JSON", num_bytes, "write less")
    return text


def _parse(text: str) -> Any:
    if len(text) > MAX_SCHEMA_BYTES:  # before anything reads it
        raise _wrong("json_schema", f"at most {MAX_SCHEMA_BYTES} bytes of JSON", len(text), "write less")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong("json_schema", "JSON", f"{type(error).__name__}: {error}", "pass an object") from error


def _checked_json_object(json_object: Any) -> bool:
    if json_object is not True:
        raise _wrong("json_object", "True or False", json_object, "pass a bool")
    return True


def _checked_regex(regex: Any) -> str:
    _check_text("regex", regex)
    if len(regex) > MAX_REGEX_CHARS:
        raise _wrong("regex", f"at most {MAX_REGEX_CHARS} characters", len(regex), "write less")
    return regex


def _checked_grammar(grammar: Any) -> str:
    num_bytes = _check_text("grammar", grammar)
    if num_bytes > MAX_GRAMMAR_BYTES:
        raise _wrong("grammar", f"at most {MAX_GRAMMAR_BYTES} bytes", num_bytes, "write less")
    return grammar


def _nodes(schema: Any) -> Iterator[tuple[Any, int]]:
    """Every value of a tree with its depth, without recursion, and no further than the caller goes on asking."""
    stack = [(schema, 1)]
    while stack:
        value, depth = stack.pop()
        yield value, depth
        if isinstance(value, Mapping):
            stack += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list | tuple):
            stack += [(each, depth + 1) for each in value]


def _check_keywords(schema: Mapping[str, Any]) -> None:
    """The keywords that have limits of their own."""
    enum, reference = schema.get("enum"), schema.get("$ref")
    if isinstance(enum, list | tuple) and len(enum) > MAX_ENUM:
        raise _wrong("json_schema", f"without an enum of more than {MAX_ENUM} values", len(enum), "allow fewer")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise _wrong("json_schema", "without $ref to other documents", reference, "put it under $defs")
    of_properties = schema.get("patternProperties")
    patterns = [schema.get("pattern"), *(of_properties if isinstance(of_properties, Mapping) else ())]
    longest = max((len(each) for each in patterns if isinstance(each, str)), default=0)
    if longest > MAX_REGEX_CHARS:
        raise _wrong("json_schema", f"without patterns of over {MAX_REGEX_CHARS} characters", longest, "shorten it")


def _checked_choice(choice: Any) -> tuple[str, ...]:
    if isinstance(choice, str) or not isinstance(choice, Sequence):
        raise _wrong("choice", "a list of strings", choice, "pass a list")
    if not 1 <= len(choice) <= MAX_CHOICES:
        raise _wrong("choice", f"1 to {MAX_CHOICES} strings", len(choice), "pass that many")
    num_bytes = sum(_check_text("choice", each) for each in choice)
    if num_bytes > MAX_CHOICE_BYTES:
        raise _wrong("choice", f"at most {MAX_CHOICE_BYTES} bytes in all", num_bytes, "use shorter ones")
    return tuple(choice)


def _check_text(name: str, text: object) -> int:
    """Returns: its bytes."""
    if not isinstance(text, str) or not text:
        raise _wrong(name, "a string that is not empty", text, "leave it out for output of any form")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise _wrong(name, "valid Unicode", ascii(text), "leave out lone surrogates") from error


def _wrong(name: str, rule: str, got: object, remedy: str) -> RequestError:
    return RequestError(f"{name} must be {rule}, got {got!r:.200}: {remedy}.", param=name)


_UNSET: Mapping[str, Any] = {"json_schema": None, "json_object": False, "regex": None, "choice": (), "grammar": None}
_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "json_schema": _checked_schema,
    "json_object": _checked_json_object,
    "regex": _checked_regex,
    "choice": _checked_choice,
    "grammar": _checked_grammar,
}
