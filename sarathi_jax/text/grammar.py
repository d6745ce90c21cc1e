"""From what an output has to be to a grammar as llguidance reads it. Nothing is compiled here: what a stranger wrote is first compiled by `grammar_checker.py`."""

import json
from typing import Any

from sarathi_jax.structured import StructuredOutput

# With any spaces and newlines allowed, a weak model writes nothing else until its tokens run out; with none, one that has learned to write a space is led off its way.
JSON_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Bounds of compiling, and of each token: steps over what has been read stay in the milliseconds, states in some ten MB a request.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


def grammar_text(structured: StructuredOutput) -> str:
    """The grammar, as JSON text that holds it in llguidance's form."""
    from llguidance import LLMatcher, regex_to_lark  # here: only requests with a structure need it

    if structured.json_schema is not None or structured.json_object:
        schema = structured.json_schema if isinstance(structured.json_schema, str) else '{"type":"object"}'
        return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
    if structured.regex is not None:
        # As in a pattern of a JSON schema, \d and \w are of ASCII alone.
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(structured.regex, 'dw')}/")
    if structured.grammar is not None:
        return LLMatcher.grammar_from_lark(structured.grammar)
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(_lark_string, structured.choice)))


def _lark_string(text: str) -> str:
    """A string of JSON is one of Lark, but for a control character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
