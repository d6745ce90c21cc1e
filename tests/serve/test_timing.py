"""`timing: true`: what an answer says of its late tokens. How long a step of the fake device takes is known, and who makes it longer."""

import os
import signal
import threading
import time
from typing import Any

import pytest

from sarathi_jax.serve import explainer
from sarathi_jax.serve.explainer import MAX_JOBS, Explainer, by_kind

STEP_S, TOKEN_S, NUM_PROMPT_TOKENS = 0.005, 0.001, 240
SLOW = {"step_s": STEP_S, "token_s": TOKEN_S}
STALL = {"sample", "token", "at_s", "gap_s", "cause", "causes"}


def wait_until_running(server: Any, num_restarts: int = 0) -> None:
    end_s = time.perf_counter() + 30.0
    while not is_running(server.get("/server_info").json(), num_restarts):
        assert time.perf_counter() < end_s, "nothing runs"
        time.sleep(0.01)
    time.sleep(10 * STEP_S)


def is_running(info: dict[str, Any], num_restarts: int) -> bool:
    runs = info.get("num_running", 0) > 0 and info["state"] == "ready"
    return runs and info["num_engine_restarts"] == num_restarts


def held_up(server: Any, **fields: Any) -> list[dict[str, Any]]:
    """Late tokens of a request beside which, while it decodes, another one's long prompt is read."""
    found: list[dict[str, Any]] = []

    def ask() -> None:
        answer = server.complete("go on", max_tokens=120, ignore_eos=True, timing=True, **fields)
        found.append(answer["timing"])

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until_running(server)
    answer = server.complete([23] * NUM_PROMPT_TOKENS, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == NUM_PROMPT_TOKENS
    asking.join(60)
    (timing,) = found
    for stall in timing["stalls"]:
        assert set(stall) == STALL
        assert stall["cause"] == stall["causes"][0]["kind"]
        assert sum(cause["seconds"] for cause in stall["causes"]) == pytest.approx(stall["gap_s"], abs=1e-6)
        assert 1 < stall["token"] <= 120
        assert timing["ttft_s"] < stall["at_s"] < timing["e2e_s"]
    return timing["stalls"]


@pytest.mark.parametrize(("policy", "kind"), [("sarathi", "prefill"), ("vllm", "stall")])
def test_who_is_held_up_by_a_prompt_is_told_so(serving: Any, policy: str, kind: str) -> None:
    """Beside the decode in the same step, or in its place: the device took a millisecond for each of the prompt's tokens."""
    limits = {"token_budget": 512, "max_model_len": 512} if policy == "vllm" else {}  # it reads prompts whole
    stalls = held_up(serving(engine={**SLOW, **limits, "policy": policy}))
    longest = max(stalls, key=lambda stall: stall["gap_s"])
    assert longest["cause"] == kind
    share = longest["causes"][0]
    assert set(share) == {"kind", "seconds", "num_tokens", "num_requests"}
    assert (share["num_tokens"], share["num_requests"]) == (NUM_PROMPT_TOKENS, 1)
    assert 0.8 * NUM_PROMPT_TOKENS * TOKEN_S < share["seconds"] <= longest["gap_s"]


def test_every_sample_has_its_own(serving: Any) -> None:
    stalls = held_up(serving(engine=SLOW), n=2, seed=1, temperature=1.0)
    assert {stall["sample"] for stall in stalls if stall["gap_s"] > 0.8 * NUM_PROMPT_TOKENS * TOKEN_S} == {0, 1}


def test_a_stream_says_it_in_its_last_chunk(server: Any) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "timing": True}
    *chunks, last = server.stream("/v1/chat/completions", body)
    assert all("timing" not in chunk for chunk in chunks)
    assert isinstance(last["timing"]["stalls"], list)


def test_who_ends_by_a_stop_string_is_told_too(serving: Any) -> None:
    server = serving(engine={"says": "one two three four"})
    answer = server.complete("go on", stop="three", timing=True)
    assert answer["choices"][0]["text"] == "one two "
    assert isinstance(answer["timing"]["stalls"], list)


def test_several_prompts_have_one_each(server: Any) -> None:
    timings = server.complete(["12+30=", "1+1="], max_tokens=3, timing=True)["timing"]
    assert [isinstance(timing["stalls"], list) for timing in timings] == [True, True]


def test_without_a_recorder_nobody_knows(serving: Any) -> None:
    server = serving(engine={"flight_recorder": 0})
    timing = server.complete("go on", max_tokens=4, timing=True)["timing"]
    assert timing["stalls"] is None
    assert timing["e2e_s"] > 0


def test_after_a_restart_what_is_known_is_told(serving: Any) -> None:
    """The engine that goes on knows its own steps: late tokens have the numbers that they have in the output, none that came before."""
    server = serving(engine=SLOW)
    body = {"model": "demo", "prompt": "go on", "max_tokens": 200, "ignore_eos": True, "timing": True, "n": 2}
    events: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: events.extend(server.stream("/v1/completions", body)))
    asking.start()
    wait_until_running(server)
    os.kill(server.engine_pid, signal.SIGKILL)
    wait_until_running(server, num_restarts=1)
    server.complete([23] * NUM_PROMPT_TOKENS, max_tokens=1)
    asking.join(60)
    timing = events[-1]["timing"]
    assert timing["num_engine_restarts"] == 1
    assert all(2 < stall["token"] <= 200 for stall in timing["stalls"])
    assert {stall["sample"] for stall in timing["stalls"] if stall["cause"] == "prefill"} == {0, 1}


def test_engines_without_a_recorder_are_answered_at_once() -> None:
    silent = Explainer([None])
    silent.follow(3, "a", 1)
    silent.ended(3)
    assert silent.is_busy
    assert [(each.number, each.late) for each in silent.take()] == [(3, None)]
    assert not silent.is_busy
    silent.ended(3)
    silent.follow(4, "b", 1)
    silent.forget(4)
    silent.ended(4)
    assert silent.take() == []


class FakeRecorder:
    num_events = 0

    def number(self, request_id: str) -> int:
        return int(request_id)

    def latest(self, num_events: int) -> None:
        pass


class NoThread:
    def __init__(self, **_: Any) -> None: ...

    def start(self) -> None: ...


def test_what_is_too_much_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explainer, "Thread", NoThread)
    monkeypatch.setattr(explainer.sys, "setswitchinterval", lambda _: None)
    busy = Explainer([FakeRecorder()])  # pyright: ignore[reportArgumentType]
    for number in range(MAX_JOBS + 2):
        busy.follow(number, str(number), 1)
        busy.ended(number)
    assert [(each.number, each.late) for each in busy.take()] == [(MAX_JOBS, None), (MAX_JOBS + 1, None)]


def test_requests_are_a_count() -> None:
    Cause = explainer.explain.Cause
    causes = [
        Cause("prefill", 0.2, ("a",), 20, (1,)),
        Cause("decode", 0.3, (), 2, (1, 2)),
        Cause("prefill", 0.2, ("b",), 30, (2,)),
        Cause("prefill", 0.1, ("a",), 10, (2,)),
    ]
    first, second = by_kind(causes)
    assert (first.kind, first.seconds, first.num_tokens, first.num_requests) == ("prefill", pytest.approx(0.5), 60, 2)
    assert (second.kind, second.seconds, second.num_tokens, second.num_requests) == ("decode", 0.3, 2, 0)
