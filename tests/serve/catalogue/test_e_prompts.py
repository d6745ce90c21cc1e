"""Group E of the catalogue: prompts of completions.

B-E01: an empty text is what the tokenizer makes of it: the demo's begins a text with a token of its own, so that it is served.
B-E02: what is no whole number is `invalid_type`, as everywhere (B-C04); `invalid_value` is for numbers that are no token.
"""

from typing import Any

import pytest

COMPLETIONS = "/v1/completions"
VOCAB = 512
MAX_MODEL_LEN = 2048
pytestmark = pytest.mark.usefixtures("unharmed")

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("B-E01", {"prompt": ...}, "400 missing_required_parameter prompt"),
    ("B-E01", {"prompt": None}, "400 invalid_type prompt"),
    ("B-E01", {"prompt": ""}, "200"),
    ("B-E01", {"prompt": "", "add_special_tokens": False}, "400 invalid_value prompt"),
    ("B-E01", {"prompt": []}, "400 empty_array prompt"),
    ("B-E01", {"prompt": [""]}, "200"),
    ("B-E01", {"prompt": [[]]}, "400 empty_array prompt[0]"),
    ("B-E01", {"prompt": [[1], []]}, "400 empty_array prompt[1]"),
    ("B-E01", {"prompt": ["a", [1]]}, "400 invalid_type prompt[1]"),
    ("B-E01", {"prompt": {}}, "400 invalid_type prompt"),
    ("B-E01", {"prompt": "\ud800"}, "400 invalid_json -"),
    ("B-E02", {"prompt": [-1]}, "400 invalid_value prompt[0]"),
    ("B-E02", {"prompt": [VOCAB]}, "400 invalid_value prompt[0]"),
    ("B-E02", {"prompt": [VOCAB + 1]}, "400 invalid_value prompt[0]"),
    ("B-E02", {"prompt": [2**31]}, "400 invalid_value prompt[0]"),
    ("B-E02", {"prompt": [2**63]}, "400 invalid_value prompt[0]"),
    ("B-E02", {"prompt": [1, 2, -(2**63)]}, "400 invalid_value prompt[2]"),
    ("B-E02", {"prompt": [1.5]}, "400 invalid_type prompt[0]"),
    ("B-E02", {"prompt": [True]}, "400 invalid_type prompt[0]"),
    ("B-E02", {"prompt": [1, "5"]}, "400 invalid_type prompt[1]"),
    ("B-E02", {"prompt": [[1], [2, 3.0]]}, "400 invalid_type prompt[1][1]"),
    ("B-E02", {"prompt": [VOCAB - 1]}, "200"),
    ("B-E04", {"prompt": [7] * (MAX_MODEL_LEN - 1), "max_tokens": 1}, "200"),
    ("B-E04", {"prompt": [7] * (MAX_MODEL_LEN - 1), "max_tokens": 2}, "400 context_length_exceeded max_tokens"),
    ("B-E04", {"prompt": [7] * MAX_MODEL_LEN, "max_tokens": 1}, "400 context_length_exceeded prompt"),
    ("B-E04", {"prompt": [7] * (MAX_MODEL_LEN + 1), "max_tokens": 1}, "400 context_length_exceeded prompt"),
    ("B-E04", {"prompt": ["a", "b" * 9000]}, "400 context_length_exceeded prompt"),
    ("B-E04", {"prompt": ["a"] * 257}, "400 array_above_max_length prompt"),
    ("B-E07", {"prompt_embeds": ""}, "400 unknown_parameter prompt_embeds"),
    ("B-E07", {"prompt_embeds": [[0.5]]}, "400 unknown_parameter prompt_embeds"),
    ("B-E07", {"prompt_embeds": None}, "400 unknown_parameter prompt_embeds"),
]


@pytest.mark.parametrize("case", CASES)
def test_a_prompt(server: Any, ask: Any, judge: Any, case: Any) -> None:
    judge(ask(server, COMPLETIONS, case[1]), case[2])


def test_others_do_not_notice(server: Any, ask: Any, judge: Any, neighbours: Any) -> None:
    with neighbours(server):
        for _, changes, expected in CASES:
            judge(ask(server, COMPLETIONS, changes), expected)


def test_both_lengths_are_named(server: Any, ask: Any, judge: Any) -> None:
    """B-E04"""
    answer = ask(server, COMPLETIONS, {"prompt": [7] * 2100, "max_tokens": 1})
    message = judge(answer, "400 context_length_exceeded prompt")["error"]["message"]
    assert "2100" in message
    assert "2048" in message


def test_ids_without_a_token_are_refused(serving: Any, ask: Any, judge: Any, well: Any) -> None:
    """B-E03: the model's tables have rows that the tokenizer knows nothing of."""
    server = serving(engine={"vocab_padding": 64})
    for token_id in (VOCAB, VOCAB + 63):
        judge(ask(server, COMPLETIONS, {"prompt": [token_id]}), "400 invalid_value prompt[0]")
        judge(ask(server, COMPLETIONS, {"logit_bias": {str(token_id): 1.0}}), "400 invalid_value logit_bias")
        judge(server.post("/detokenize", {"tokens": [token_id]}), "400 invalid_value tokens")
    well(server)


def test_a_prompt_that_no_pool_holds_is_refused(serving: Any, ask: Any, judge: Any, well: Any) -> None:
    """B-E05: it fits the model and never the pages: at once, and nobody waits behind it."""
    server = serving(engine={"num_pages": 32, "page_size": 16})
    expected = "400 context_length_exceeded max_tokens"
    judge(ask(server, COMPLETIONS, {"prompt": [7] * 600, "max_tokens": 8}), expected)
    judge(ask(server, COMPLETIONS, {"prompt": [7] * 8, "max_tokens": 600}), expected)
    judge(ask(server, COMPLETIONS, {"prompt": [7] * 500, "max_tokens": 8}), "200")
    well(server)


def test_a_cached_prompt_is_scored_to_its_last_token(server: Any) -> None:
    """B-E06: the fake device scores position p with -1 - p, whatever is in the cache."""
    token_ids = list(range(10, 90))
    for _ in range(2):
        choice = server.complete(token_ids, echo=True, logprobs=1, max_tokens=2)["choices"][0]
        scores = choice["logprobs"]["token_logprobs"]
        assert scores[: len(token_ids)] == [None, *(-1.0 - place for place in range(len(token_ids) - 1))]
    usage = server.complete(token_ids, max_tokens=1)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0
