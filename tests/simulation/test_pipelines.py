"""Time lines of pipelines, counted by hand; and a pipeline of one stage against a formula."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.simulation.pipelines import Pipeline, StagesInLockStep, StagesInSeries

type Kind = Callable[[int], Pipeline]
KINDS = pytest.mark.parametrize("kind", [StagesInSeries, StagesInLockStep])


def leave_times(pipeline: Pipeline, entries: Sequence[tuple[float, Sequence[float]]]) -> list[float]:
    """When each microbatch is out. entries: (ready at, seconds of each stage)."""
    passages = [pipeline.enter(ready_s, stage_s) for ready_s, stage_s in entries]
    return [pipeline.done_s(passage) for passage in passages]


def test_stages_in_series_start_each_as_soon_as_they_can() -> None:
    """Stage 0 runs 0-4, 4-6, 10-11; stage 1 runs 4-5, 6-9, 11-13 and so is idle 1 and 2 s, stage 0 4 s."""
    pipeline = StagesInSeries(2)
    assert leave_times(pipeline, [(0, (4, 1)), (0, (2, 3)), (10, (1, 2))]) == [5, 9, 13]
    assert pipeline.idle_s == 4 + 1 + 2
    assert pipeline.free_s == 11


def test_a_microbatch_waits_between_stages_in_series_while_the_next_one_is_busy() -> None:
    """Stage 0 runs 0-1, 1-2; stage 1 runs 1-6, 6-8, without a gap."""
    pipeline = StagesInSeries(2)
    assert leave_times(pipeline, [(0, (1, 5)), (0, (1, 2))]) == [6, 8]
    assert pipeline.idle_s == 0


def test_stages_in_lock_step_tick_as_long_as_the_longest() -> None:
    """Ticks: 4 (first alone), max(2, 1) = 2, max(1, 3) = 3, and 2 to drive the last one out. Idle: 4, 1, 2 and 2 s of the other stage."""
    pipeline = StagesInLockStep(2)
    assert leave_times(pipeline, [(0, (4, 1)), (0, (2, 3)), (0, (1, 2))]) == [6, 9, 11]
    assert pipeline.idle_s == 4 + 1 + 2 + 2
    assert pipeline.free_s == 11


def test_in_lock_step_all_stages_wait_for_a_microbatch_that_is_late() -> None:
    """The tick of the second begins at 10: both stages have waited 6 s since 4."""
    pipeline = StagesInLockStep(2)
    assert leave_times(pipeline, [(0, (4, 1)), (10, (2, 3))]) == [12, 15]
    assert pipeline.idle_s == 4 + 2 * 6 + 1 + 3


def test_in_lock_step_whoever_asks_for_a_microbatch_drives_it_out() -> None:
    """An empty tick of 1 s follows at once; what enters later finds the pipeline empty, and is no faster for it."""
    pipeline = StagesInLockStep(2)
    first = pipeline.enter(0, (4, 1))
    assert first.done_s is None
    assert pipeline.done_s(first) == 5
    assert pipeline.done_s(pipeline.enter(1, (2, 3))) == 5 + 2 + 3


@pytest.mark.parametrize(("kind", "first_done_s"), [(StagesInSeries, 6), (StagesInLockStep, 7)])
def test_a_passage_tells_when_each_stage_began(kind: Kind, first_done_s: float) -> None:
    """Stages run 1-5 and 5-6, then 5-7 and 7-10; in lock step the first leaves the second stage when the other one's tick in the first stage ends."""
    pipeline = kind(2)
    first, second = pipeline.enter(1, (4, 1)), pipeline.enter(2, (2, 3))
    assert (pipeline.done_s(first), pipeline.done_s(second)) == (first_done_s, 10)
    assert (first.ready_s, first.starts_s, second.ready_s, second.starts_s) == (1, [1, 5], 2, [5, 7])


@KINDS
def test_the_time_before_the_first_microbatch_is_not_idle(kind: Kind) -> None:
    pipeline = kind(1)
    assert leave_times(pipeline, [(7, (2,)), (8, (2,)), (20, (1,))]) == [9, 11, 21]
    assert pipeline.idle_s == 20 - 11


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=20))
def test_one_stage_is_one_server_in_either_kind(entries: list[tuple[int, int]]) -> None:
    """Lindley's recursion: it starts when it is ready and the one before has left."""
    ready = sorted(ready_s for ready_s, _ in entries)
    wanted, free_s = [], 0
    for ready_s, (_, seconds) in zip(ready, entries, strict=True):
        free_s = max(free_s, ready_s) + seconds
        wanted.append(free_s)
    steps = [(float(ready_s), (float(seconds),)) for ready_s, (_, seconds) in zip(ready, entries, strict=True)]
    assert leave_times(StagesInSeries(1), steps) == leave_times(StagesInLockStep(1), steps) == wanted


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_lock_step_is_never_faster_than_series(stage_s: list[tuple[int, int]]) -> None:
    entries = [(0.0, each) for each in stage_s]
    series, lock_step = leave_times(StagesInSeries(2), entries), leave_times(StagesInLockStep(2), entries)
    assert all(early <= late for early, late in zip(series, lock_step, strict=True))
