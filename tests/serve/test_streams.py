"""A stream says what the whole answer says, byte for byte: texts, tokens, log-probabilities, reasons and counts, whatever tokens cut characters or stop strings in two."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

NUM_REQUESTS = 250  # of each kind
PROMPTS = ("héllo 🙂 wörld", "日本語のテキストと絵文字🎌", "plain words", "👩‍👩‍👧 family", "\u0000 and \ufeff")
STOPS = ("a", "ell", "th", "é", "ing", "e ", "🙂", "日", "qzx", " wa", "s\n", "<|end|>")


def fields_of(rng: random.Random, place: int) -> dict[str, Any]:
    return {
        "model": "demo",
        "max_tokens": rng.randint(1, 60),
        "temperature": rng.choice([0.0, 1.0, 1.5]),
        "seed": place,
        "n": rng.choice([1, 1, 1, 2, 3]),
        "stop": rng.sample(STOPS, rng.randint(0, 4)) or None,
        "ignore_eos": rng.random() < 0.5,
        "include_stop_str_in_output": rng.random() < 0.3,
        "skip_special_tokens": rng.random() < 0.7,
        "return_token_ids": rng.random() < 0.3,
        "stream_options": {"include_usage": True},
    }


def completion(rng: random.Random, place: int) -> tuple[str, dict[str, Any]]:
    body = {**fields_of(rng, place), "prompt": f"{rng.choice(PROMPTS)} {place}", "echo": rng.random() < 0.3}
    return "/v1/completions", {**body, "logprobs": rng.choice([None, None, 0, 2])}


def chat(rng: random.Random, place: int) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": f"{rng.choice(PROMPTS)} {place}"}]
    logprobs = rng.choice([{}, {}, {"logprobs": True, "top_logprobs": 1}])
    return "/v1/chat/completions", {**fields_of(rng, place), "messages": messages, **logprobs}


def joined(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What each choice of a stream said in the end."""
    choices: dict[int, dict[str, Any]] = {}
    for each in (choice for event in events for choice in event["choices"]):
        choice = choices.setdefault(each["index"], {"text": "", "tokens": [], "logprobs": [], "reason": None})
        choice["text"] += each["text"] if "text" in each else each["delta"].get("content", "")
        choice["tokens"] += each.get("token_ids", [])
        choice["logprobs"] += values_of(each)
        assert choice["reason"] is None, "nothing comes after the end"
        choice["reason"] = (each["finish_reason"], each["stop_reason"]) if each["finish_reason"] else None
    return choices


def whole(answer: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {
        each["index"]: {
            "text": each["text"] if "text" in each else each["message"]["content"],
            "tokens": each.get("token_ids", []),
            "logprobs": values_of(each),
            "reason": (each["finish_reason"], each["stop_reason"]),
        }
        for each in answer["choices"]
    }


def values_of(choice: dict[str, Any]) -> list[Any]:
    logprobs = choice.get("logprobs")
    if not logprobs:
        return []
    if "content" in logprobs:
        return logprobs["content"]
    return list(zip(*(logprobs[name] for name in ("tokens", "token_logprobs", "text_offset")), strict=True))


@pytest.mark.parametrize("kind", [completion, chat])
def test_a_stream_is_the_whole_answer(server: Any, kind: Callable[[random.Random, int], tuple[str, Any]]) -> None:
    def compare(place: int) -> None:
        path, body = kind(random.Random(place), place)
        events = server.stream(path, body)
        answer = server.post(path, {**body, "stream_options": None}).json()
        assert joined(events) == whole(answer), body
        counted, streamed = answer["usage"], events[-1]["usage"]
        assert streamed["completion_tokens"] == counted["completion_tokens"], body
        assert events[-1]["choices"] == []
        assert {event["id"] for event in events} == {events[0]["id"]}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(compare, range(NUM_REQUESTS)))


def test_texts_of_the_real_model(real_server: Any) -> None:
    for place, prompt in enumerate(PROMPTS):
        body = {"model": "demo", "prompt": prompt, "max_tokens": 40, "temperature": 1.3, "seed": place, "stop": ["e"]}
        events = real_server.stream("/v1/completions", body)
        assert joined(events) == whole(real_server.post("/v1/completions", body).json())
