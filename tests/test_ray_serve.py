"""The Ray Serve example, without Ray: a replica's way from a request to lines of JSON, over an engine that spells the prompt."""

import asyncio
import importlib
import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse

from sarathi_jax.errors import EngineError, RequestError
from sarathi_jax.outputs import StreamEvent
from sarathi_jax.sampling_params import SamplingParams


class SpellingEngine:
    """Each step gives every request the next letter of its prompt."""

    def __init__(self) -> None:
        self.left: dict[str, list[str]] = {}
        self.aborted: list[str] = []
        self.most_at_once = 0
        self.error: Exception | None = None
        self.may_step = threading.Event()
        self.may_step.set()

    @property
    def has_unfinished(self) -> bool:
        return bool(self.left)

    def add_request(self, prompt: str, params: SamplingParams) -> str:
        if not prompt:
            raise RequestError("The prompt must hold at least one token, got none.")
        self.left[prompt] = list(prompt)
        return prompt

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self.left.pop(request_id, None)

    def step(self) -> list[StreamEvent]:
        self.may_step.wait()
        time.sleep(0.001)
        if self.error is not None:
            raise self.error
        self.most_at_once = max(self.most_at_once, len(self.left))
        events = []
        for request_id, letters in list(self.left.items()):
            letter, is_last = letters.pop(0), not letters
            reason, output = ("stop", object()) if is_last else (None, None)
            events.append(StreamEvent(request_id, 0, letter, [0], reason, output))  # pyright: ignore[reportArgumentType]
            if is_last:
                del self.left[request_id]
        return events


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ray: Any = types.ModuleType("ray")
    ray.serve = types.SimpleNamespace(Application=object)
    monkeypatch.setitem(sys.modules, "ray", ray)
    yield importlib.import_module("examples.ray_serve")
    del sys.modules["examples.ray_serve"]


@pytest.fixture
def replica(example: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(example, "LLM", lambda **options: types.SimpleNamespace(engine=SpellingEngine(), **options))
    return example.Replica(model="any")


def request_of(body: bytes) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def ask(replica: Any, **body: Any) -> tuple[int, str]:
    """Status, and the text or the error."""
    answer = await replica(request_of(json.dumps(body).encode()))
    if not isinstance(answer, StreamingResponse):
        return answer.status_code, json.loads(bytes(answer.body))["error"]
    lines = [json.loads(line if isinstance(line, str) else bytes(line)) async for line in answer.body_iterator]
    if "error" in lines[-1]:
        return answer.status_code, lines[-1]["error"]
    assert [line["finish_reason"] for line in lines] == [None] * (len(lines) - 1) + ["stop"]
    return answer.status_code, "".join(line["text"] for line in lines)


def test_requests_run_together_and_each_gets_its_own(replica: Any) -> None:
    prompts = ["one", "twelve", "four hundred and two"]

    async def ask_all() -> list[tuple[int, str]]:
        return await asyncio.gather(*(ask(replica, prompt=prompt, max_tokens=64) for prompt in prompts))

    assert asyncio.run(ask_all()) == [(200, prompt) for prompt in prompts]
    assert replica._llm.engine.most_at_once > 1
    replica.check_health()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": ""}, "at least one token"),
        ({}, "prompt"),
        ({"prompt": "a", "temperature": -1}, "temperature must be between"),
    ],
)
def test_a_wrong_request_is_answered_and_costs_nobody_anything(replica: Any, body: dict[str, Any], text: str) -> None:
    status, error = asyncio.run(ask(replica, **body))
    assert status == 400
    assert text in error
    assert asyncio.run(ask(replica, prompt="fine")) == (200, "fine")


async def read_one_line_of(replica: Any, prompt: str) -> None:
    answer = await replica(request_of(json.dumps({"prompt": prompt}).encode()))
    lines = answer.body_iterator
    await anext(lines)
    await lines.aclose()


async def give_up_waiting_for(replica: Any, prompt: str) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(replica(request_of(json.dumps({"prompt": prompt}).encode())), 0.01)


STORY = "a story that takes a minute " * 2000


def test_who_leaves_is_aborted(replica: Any) -> None:
    asyncio.run(read_one_line_of(replica, STORY))
    asyncio.run(ask(replica, prompt="somebody else"))
    assert replica._llm.engine.aborted == [STORY]


def test_who_leaves_while_being_told_is_aborted(example: Any, replica: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = example.Call.tell

    def tell_and_see_them_leave(call: Any, what: Any) -> None:
        tell(call, what)
        if call.prompt == STORY:
            call.has_left.wait(10)

    monkeypatch.setattr(example.Call, "tell", tell_and_see_them_leave)
    asyncio.run(read_one_line_of(replica, STORY))
    asyncio.run(ask(replica, prompt="somebody else"))
    assert replica._llm.engine.aborted == [STORY]


def test_who_leaves_before_the_first_letter_is_aborted(replica: Any) -> None:
    replica._llm.engine.may_step.clear()
    asyncio.run(give_up_waiting_for(replica, STORY))
    replica._llm.engine.may_step.set()
    asyncio.run(ask(replica, prompt="somebody else"))
    assert replica._llm.engine.aborted == [STORY]


@pytest.mark.parametrize("is_late", [False, True])
def test_an_engine_that_can_not_go_on_is_said_to_all_and_to_ray(replica: Any, is_late: bool) -> None:
    engine: SpellingEngine = replica._llm.engine

    async def ask_and_break(ask: Callable[..., Any]) -> Any:
        engine.error = None if is_late else EngineError("process 1 is lost")
        asking = asyncio.create_task(ask(replica, prompt="x" * 500))
        await asyncio.sleep(0.1)
        engine.error = EngineError("process 1 is lost")
        return await asking

    assert asyncio.run(ask_and_break(ask)) == (200 if is_late else 503, "process 1 is lost")
    with pytest.raises(EngineError, match="process 1 is lost"):
        replica.check_health()
    assert asyncio.run(ask(replica, prompt="too late")) == (503, "process 1 is lost")
