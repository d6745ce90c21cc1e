"""The simulated executor alone: what it is given, when it is done, in which order it is read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sarathi_jax.clock import VirtualClock
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow
from sarathi_jax.simulation.hardware import HostCost
from sarathi_jax.simulation.pipelines import StagesInSeries
from sarathi_jax.simulation.simulated_executor import SimulatedExecutor
from sarathi_jax.simulation.step_work import ChunkWork, StepWork

NO_PAGES = np.empty(0, np.int32)


def row(request_id: str, start: int, num_tokens: int, does_sample: bool = True) -> ScheduledRow:
    return ScheduledRow(
        request_id, start, num_tokens, None, NO_PAGES, 0, does_sample, False, (), 8, 0, SamplingParams(), 0
    )


def schedule(step: int, *rows: ScheduledRow) -> Schedule:
    return Schedule(step, rows, sum(each.num_tokens for each in rows), sum(each.num_tokens == 1 for each in rows))


def executor(prices: Callable[[StepWork], list[float]], host: HostCost, **options: Any) -> SimulatedExecutor:
    return SimulatedExecutor(VirtualClock(), prices, host, StagesInSeries(1), **options)


FREE = HostCost("free", 0.0, 0.0, is_overlapped=False)
ONE = schedule(0, row("a", 9, 1), row("b", 0, 3, does_sample=False))
TWO = schedule(1, row("a", 10, 1), row("b", 3, 5))


def test_it_prices_what_the_rows_come_to() -> None:
    """A row of one token is a decode, which attends to itself too."""
    seen: list[StepWork] = []
    executor(lambda work: seen.append(work) or [1.0], FREE).submit(TWO)
    assert seen == [StepWork((ChunkWork(3, 5),), 1, 11)]


def test_the_clock_moves_when_a_step_is_read_and_not_before() -> None:
    """Host code takes 1 s and 0.5 s a row: the first starts at 2 and the second, whose host code follows, at 7."""
    device = executor(lambda _: [5.0], HostCost("slow", 1.0, 0.5, is_overlapped=True))
    first, second = device.submit(ONE), device.submit(TWO)
    assert (device.clock.now(), device.oldest_done_s) == (0, 7)
    first.result()
    assert (device.clock.now(), device.oldest_done_s) == (7, 12)
    second.result()
    assert (device.clock.now(), device.oldest_done_s) == (12, None)


def test_a_step_is_ready_from_its_end_on() -> None:
    device = executor(lambda _: [5.0], FREE)
    handle = device.submit(ONE)
    device.clock.advance(4.75)
    assert not handle.is_ready()
    device.clock.advance(0.25)
    assert handle.is_ready()
    device.clock.advance(2.0)
    handle.result()
    assert device.clock.now() == 7  # reading it late takes no time


def test_tokens_are_what_the_caller_says_of_rows_that_sample() -> None:
    plain, given = executor(lambda _: [1.0], FREE), executor(lambda _: [1.0], FREE, token_of=lambda each: each.start)
    assert plain.submit(TWO).result().token_ids == [0, 0]
    assert given.submit(ONE).result().token_ids == [9, 0]


def test_a_step_is_as_large_as_it_is() -> None:
    bucket = executor(lambda _: [1.0], FREE).submit(TWO).bucket
    assert (bucket.num_tokens, bucket.num_rows) == (6, 2)


def test_steps_are_read_in_their_order() -> None:
    device = executor(lambda _: [1.0], FREE)
    device.submit(ONE)
    with pytest.raises(AssertionError, match="in their order"):
        device.submit(TWO).result()
