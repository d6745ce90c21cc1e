"""Compiles grammars as an engine would; what `grammar_checker.py` has a process of its own for. A task of `worker_main.py`: imports nothing of this package."""

from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer


def start(settings: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, str]]:
    """settings: tokenizer_json, vocab_size, eos_token_ids, limits. A request: a grammar."""
    try:
        tokenizer = LLTokenizer(
            settings["tokenizer_json"], n_vocab=settings["vocab_size"], eos_token=settings["eos_token_ids"]
        )
    except Exception as error:  # told with the first answer
        message = f"{error}"
        return lambda _: {"error": "tokenizer", "message": message}
    limits = LLParserLimits(**settings["limits"])

    def answer(request: dict[str, Any]) -> dict[str, str]:
        """Returns: {"text": ""}, or {"error": "tokenizer" | "grammar", "message": ...}."""
        matcher = LLMatcher(tokenizer, request["grammar"], log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # an output's first token has to exist
        return {"error": "grammar", "message": matcher.get_error()} if matcher.is_error() else {"text": ""}

    return answer
