"""POST /v1/completions over the real engine: texts that are known to be right, and the shapes that clients read."""

from typing import Any

import pytest


def test_a_completion(real_server: Any) -> None:
    answer = real_server.complete("12+30=", max_tokens=4)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "demo"
    (choice,) = answer["choices"]
    assert (choice["index"], choice["text"], choice["finish_reason"]) == (0, "42", "stop")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_prompts_of_every_form_say_the_same(real_server: Any) -> None:
    token_ids = real_server.post("/tokenize", {"prompt": "12+30="}).json()["tokens"]
    for prompt in ("12+30=", ["12+30="], token_ids, [token_ids]):
        assert real_server.complete(prompt, max_tokens=4)["choices"][0]["text"] == "42"


def test_choices_run_over_prompts_and_samples(real_server: Any) -> None:
    answer = real_server.complete(["12+30=", "20+7="], n=2, max_tokens=4, temperature=0)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["42", "42", "27", "27"]


def test_echo_and_log_probabilities(real_server: Any) -> None:
    plain = real_server.complete("12+30=", max_tokens=2, logprobs=2)["choices"][0]["logprobs"]
    choice = real_server.complete("12+30=", max_tokens=2, logprobs=2, echo=True)["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == "12+30=42"
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["token_logprobs"][-2:] == pytest.approx(plain["token_logprobs"], abs=1e-4)
    assert "".join(logprobs["tokens"][1:]) == choice["text"]
    assert all(len(top) in (2, 3) for top in logprobs["top_logprobs"][1:])


def test_echo_alone_scores_a_prompt(real_server: Any) -> None:
    """As lm-eval asks: no token is wanted."""
    choice = real_server.complete("12+30=42", max_tokens=0, logprobs=1, echo=True)["choices"][0]
    assert choice["text"] == "12+30=42"
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == len(
        real_server.post("/tokenize", {"prompt": "12+30=42"}).json()["tokens"]
    )


def test_a_stop_string_cuts_the_text(real_server: Any) -> None:
    answer = real_server.complete("sort(5,3,8)=", stop=["5"], max_tokens=16)
    choice = answer["choices"][0]
    assert "5" not in choice["text"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "5")


def test_a_stop_string_hides_nothing_of_the_prompt(real_server: Any) -> None:
    """The engine's last word comes too late for it."""
    prompt = "Say this again and again: " + "xyz " * 30
    text = real_server.complete(prompt, max_tokens=16, ignore_eos=True)["choices"][0]["text"]
    answer = real_server.complete(prompt, max_tokens=64, ignore_eos=True, stop=[text[-1]], timing=True)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
    assert answer["timing"]["queue_s"] is not None


def test_a_seed_gives_the_same_text_again(real_server: Any) -> None:
    fields = {"temperature": 1.5, "seed": 7, "max_tokens": 24, "ignore_eos": True}
    texts = {real_server.complete("Once", **fields)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 1
    assert real_server.complete("Once", **{**fields, "seed": 8})["choices"][0]["text"] not in texts


def test_a_prompt_read_before_is_not_read_again(real_server: Any) -> None:
    prompt = "Repeat this long prompt, please: " + "abc " * 40
    real_server.complete(prompt, max_tokens=1)
    usage = real_server.complete(prompt, max_tokens=1)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= usage["prompt_tokens"] // 2


def test_token_ids_come_back_when_asked_for(real_server: Any) -> None:
    choice = real_server.complete("12+30=", max_tokens=4, return_token_ids=True)["choices"][0]
    text = real_server.post("/detokenize", {"tokens": choice["token_ids"][:-1]}).json()["prompt"]
    assert text == "42"
    assert choice["prompt_token_ids"] == real_server.post("/tokenize", {"prompt": "12+30="}).json()["tokens"]
