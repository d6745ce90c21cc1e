"""`priority` over HTTP: it reaches the scheduler, by both routes, and again after a restart of the engine."""

import threading
import time
from typing import Any

import pytest

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.serve.live_request import LiveRequest, RequestSpec
from sarathi_jax.serve.messages import TokenEvent


def wait_for(server: Any, num_live: int) -> None:
    end_s = time.monotonic() + 20
    while server.front.client.num_live != num_live:
        assert time.monotonic() < end_s, "it has not come true"
        time.sleep(0.005)


@pytest.mark.parametrize("route", ["complete", "chat"])
def test_lower_numbers_are_answered_first(serving: Any, route: str) -> None:
    """One at a time runs, and they are sent one after the other while the first one does."""
    server = serving(engine={"step_s": 0.01, "max_num_seqs": 1})
    ended: list[int | None] = []

    def ask(priority: int | None, max_tokens: int) -> threading.Thread:
        def run() -> None:
            getattr(server, route)(max_tokens=max_tokens, ignore_eos=True, priority=priority)
            ended.append(priority)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    threads = [ask(-7, 150)]
    wait_for(server, 1)
    for number, priority in enumerate([3, None, -1, 2]):
        threads.append(ask(priority, 2))
        wait_for(server, number + 2)
    for thread in threads:
        thread.join(30)
    assert ended == [-7, -1, None, 2, 3]


def test_it_is_the_same_after_a_restart() -> None:
    params = SamplingParams(seed=1, n=2)
    live = LiveRequest(1, RequestSpec("r", [5], params, 0.0, priority=-3))
    assert [add.priority for add in live.adds()] == [-3]
    live.push(TokenEvent(1, 0, [7]), 1.0)
    assert [(add.sample, add.priority) for add in live.adds()] == [(0, -3), (1, -3)]
