"""Constraints are made beside the steps: nothing waits for one but the request that asked for it."""

import threading
import time
from typing import Any

import pytest

from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.serve.constraint_queue import ConstraintQueue
from sarathi_jax.serve.messages import Add
from sarathi_jax.structured import StructuredOutput


def add(number: int, regex: str = "a") -> Add:
    return Add(
        number=number,
        request_id=f"r{number}",
        prompt_token_ids=[5],
        params=SamplingParams(structured=StructuredOutput(regex=regex), seed=1),
        arrival_s=0.0,
        cache_salt="",
        slo_class="interactive",
        client="",
    )


class SlowFactory:
    """Makes nothing until it is told to."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def make(self, structured: StructuredOutput, output_token_ids: list[int]) -> Any:
        assert self.goes_on.wait(60)
        if structured.regex == "bad":
            raise RequestError("regex must be better", param="regex")
        return structured.regex


def take_all(queue: ConstraintQueue) -> list[Any]:
    made, end_s = [], time.monotonic() + 60
    while queue.has_work and time.monotonic() < end_s:
        made += [(message.number, constraint) for message, constraint in queue.take()]
        time.sleep(0.001)
    return made


def test_nobody_waits_and_the_order_stays() -> None:
    factory = SlowFactory()
    queue: Any = ConstraintQueue(factory)  # pyright: ignore[reportArgumentType]
    assert not queue.has_work
    for number, regex in enumerate(["a", "b", "bad", "c", "d"]):
        queue.add(add(number, regex))
    assert list(queue.take()) == []
    assert queue.has_work
    queue.drop(1)  # its client has left
    queue.drop(4)
    factory.goes_on.set()
    (first, bad, last) = take_all(queue)
    assert (first, last) == ((0, "a"), (3, "c"))
    assert bad[0] == 2
    assert isinstance(bad[1], RequestError)
    assert not queue.has_work


def test_a_model_without_a_tokenizer_has_none() -> None:
    queue = ConstraintQueue(None)
    queue.add(add(0))
    ((_, error),) = take_all(queue)
    assert isinstance(error, RequestError)


@pytest.mark.parametrize("n", [1, 3])
def test_an_engine_that_dies_leaves_no_trace_in_the_answer(serving: Any, server: Any, n: int) -> None:
    asked = {"max_tokens": 60, "seed": 7, "n": n, "structured_outputs": {"regex": "[a-z]{8}(-[0-9]{4}){4}"}}
    quiet = server.complete("x", **asked)["choices"]
    assert all(choice["finish_reason"] == "stop" for choice in quiet)
    dying = serving(engine={"dies_at_step": 14})
    assert dying.complete("x", **asked)["choices"] == quiet
    assert dying.front.client.num_restarts > 0
