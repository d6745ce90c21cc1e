"""The executor of a pipeline, over a runner without devices: which tick brings a step's tokens, and what becomes of a fault on the way."""

import jax
import numpy as np
import pytest

from sarathi_jax.errors import EngineError
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.packing import Geometry, pack_padding
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow

GEOMETRY = Geometry(
    num_pages=8, page_size=4, blocks_per_row=2, max_num_seqs=2, max_model_len=8, vocab_size=97, token_budget=8
)


class Words:
    """A step's words; `number` is the token of every row."""

    def __init__(self, bucket: Bucket, number: int) -> None:
        self.words = np.array([number] * bucket.num_rows + [1] * bucket.num_rows, np.int32)

    def is_ready(self) -> bool:
        return True

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self.words


class NumberingRunner:
    """Each step's token is the step's number, from 1. failing: numbers of steps that can't be dispatched."""

    def __init__(self, failing: set[int]) -> None:
        self.failing = failing
        self.num_steps = self.num_resets = 0
        self.packed = np.zeros(0, np.int32)

    def run_step(self, bucket: Bucket, packed: np.ndarray) -> Words:
        self.num_steps += 1
        self.packed = packed
        if self.num_steps in self.failing:
            raise jax.errors.JaxRuntimeError("INTERNAL: a fault")
        return Words(bucket, self.num_steps)

    def set_slot(self, packed: np.ndarray) -> None:
        raise AssertionError("greedy requests have no slot to set up")

    def set_masks(self, packed: np.ndarray) -> None:
        raise AssertionError("greedy requests have no masks")

    def reset(self) -> None:
        self.num_resets += 1

    def close(self) -> None:
        pass


def executor(num_stages: int, *failing: int) -> tuple[JaxExecutor, NumberingRunner]:
    runner = NumberingRunner(set(failing))
    return JaxExecutor(runner, BucketTable(8, 2, variants=(Variant.GREEDY,)), GEOMETRY, (), num_stages), runner


def schedule(step: int) -> Schedule:
    table, params = np.array([0, 1], np.int32), SamplingParams(temperature=0.0)
    row = ScheduledRow("a", step, 1, [5], table, 0, True, step == 0, (), 1, step, params, 0)
    return Schedule(step, (row,), 1, 1)


def test_tokens_come_of_the_tick_at_which_a_step_leaves_the_last_stage() -> None:
    pipeline, runner = executor(3)
    handles = [pipeline.submit(schedule(step)) for step in range(4)]
    assert [handle.result().token_ids for handle in handles[:2]] == [[3], [4]]
    assert runner.num_steps == 4, "what is asked for has been run"


def test_ticks_that_are_missing_are_run_when_they_are_asked_for() -> None:
    pipeline, runner = executor(3)
    handle = pipeline.submit(schedule(0))
    assert runner.num_steps == 1
    assert handle.is_ready()
    assert (runner.num_steps, handle.result().token_ids) == (3, [3])


@pytest.mark.parametrize("asks_first", [True, False])
def test_a_fault_in_a_tick_that_was_missing_fails_the_step_and_not_the_next_ones(asks_first: bool) -> None:
    """Whoever only asks whether a step is done is not to be told of faults; its result is."""
    pipeline, runner = executor(2, 3)
    first = pipeline.submit(schedule(0)), pipeline.submit(schedule(1))
    assert first[0].result().token_ids == [2]
    if asks_first:
        assert first[1].is_ready()
    with pytest.raises(EngineError, match=r"Step 1 .* must run to its end, got INTERNAL: a fault"):
        first[1].result()
    assert runner.num_resets == 1
    later = pipeline.submit(schedule(2)), pipeline.submit(schedule(3))
    assert [handle.result().token_ids for handle in later] == [[5], [6]]


def test_steps_behind_a_failed_one_are_given_up_with_it() -> None:
    pipeline, runner = executor(2, 2)
    first, second = pipeline.submit(schedule(0)), pipeline.submit(schedule(1))
    assert first.is_ready() and second.is_ready()
    with pytest.raises(EngineError, match=r"Step 1 .* got INTERNAL: a fault"):
        second.result()
    with pytest.raises(EngineError, match="Step 0 must keep its KV pages, got a failure of a step before it"):
        first.result()
    assert runner.num_resets == 1
    third = pipeline.submit(schedule(2))
    on_second_stage = runner.packed.reshape(2, -1)[1]
    np.testing.assert_array_equal(on_second_stage, pack_padding(third.bucket, GEOMETRY), "nothing is left on its way")
