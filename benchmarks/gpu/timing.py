"""Timing work on a device: calls that follow from each other, many between two looks at the clock, so that neither the host's dispatch nor the wait counts."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

REPEATS, TARGET_S = 5, 0.2
TINY_REPEATS, TINY_TARGET_S = 2, 0.0
MAX_CALLS = 2000


class Timing(NamedTuple):
    """Seconds of one call: median, least and most of several repeats."""

    seconds: float
    lowest_s: float
    highest_s: float


def time_chain[T](call: Callable[[T], T], value: T, *, is_tiny: bool) -> tuple[Timing, T]:
    """Time calls of which each takes what the one before gave, and may take it over (donation).

    Args:
      call: dispatches work and returns at once; the first call, which may compile, is not counted.
      value: what the first call takes.
      is_tiny: as few calls as there can be.
    Returns: (seconds a call, what the last call gave).
    """
    repeats, target_s = (TINY_REPEATS, TINY_TARGET_S) if is_tiny else (REPEATS, TARGET_S)
    value = jax.block_until_ready(call(value))
    first_s, value = _repeat(call, value, 1)
    num_calls = max(1, min(round(target_s / first_s), MAX_CALLS))
    samples_s: list[float] = []
    for _ in range(repeats):
        sample_s, value = _repeat(call, value, num_calls)
        samples_s.append(sample_s)
    return Timing(statistics.median(samples_s), min(samples_s), max(samples_s)), value


def _repeat[T](call: Callable[[T], T], value: T, num_calls: int) -> tuple[float, T]:
    started_s = time.perf_counter()
    for _ in range(num_calls):
        value = call(value)
    value = jax.block_until_ready(value)
    return (time.perf_counter() - started_s) / num_calls, value
