"""The open loop of the benches, on the real engine over an executor that answers at once."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from sarathi_jax.cli.load import run_load
from sarathi_jax.clock import WallClock
from sarathi_jax.engine.engine import Engine
from sarathi_jax.errors import RequestError
from sarathi_jax.scheduling.schedule import Schedule, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.workloads import RequestShape

STEP_S = 0.002


class SlowExecutor:
    """Every step takes STEP_S and gives every row token 7."""

    def submit(self, schedule: Schedule) -> Any:
        time.sleep(STEP_S)
        bucket = SimpleNamespace(name="any", num_tokens=schedule.num_tokens, num_rows=len(schedule.rows))
        return SimpleNamespace(bucket=bucket, result=lambda: StepResult([7] * len(schedule.rows)))

    def close(self) -> None:
        pass


@pytest.fixture
def engine() -> Engine:
    scheduler = Scheduler(
        "sarathi", num_pages=64, token_budget=32, max_num_seqs=2, max_model_len=64, vocab_size=13, page_size=4
    )
    return Engine(scheduler, SlowExecutor(), WallClock(), is_overlapped=False, tokenizer=None, eos_token_ids=(7,))


def test_every_request_gets_exactly_its_tokens(engine: Engine) -> None:
    shapes = [RequestShape(0.0, 5, 3), RequestShape(0.0, 2, 9), RequestShape(0.0, 1, 1)]
    outputs = run_load(engine, shapes, [[1] * 5, [2] * 2, [3]])
    found = {tuple(output.prompt_token_ids): output.outputs[0].token_ids for output in outputs}
    assert found == {(1,) * 5: [7] * 3, (2,) * 2: [7] * 9, (3,): [7]}


def test_a_request_is_not_sent_before_it_arrives(engine: Engine) -> None:
    run_load(engine, [RequestShape(0.0, 1, 1), RequestShape(0.05, 1, 1)], [[1], [2]])
    first, second = engine.records
    assert second.start_s - first.start_s >= 0.05 - STEP_S


def test_waiting_for_a_place_counts_from_the_arrival(engine: Engine) -> None:
    # Two run at a time for 20 steps; the third arrives during them and waits for one of them to end.
    shapes = [RequestShape(0.0, 1, 20), RequestShape(0.0, 1, 20), RequestShape(2 * STEP_S, 1, 1)]
    late = run_load(engine, shapes, [[1], [2], [3]])[-1]
    assert late.prompt_token_ids == [3]
    assert (late.metrics.scheduling_delay_s or 0.0) >= 17 * STEP_S


def test_records_are_of_the_last_run_alone(engine: Engine) -> None:
    for num_output_tokens in (9, 2):
        run_load(engine, [RequestShape(0.0, 1, num_output_tokens)], [[1]])
    assert len(engine.records) == 2


def test_a_request_that_can_never_fit_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="64"):
        run_load(engine, [RequestShape(0.0, 60, 60)], [[1] * 60])


def test_a_round_follows_the_answer_before_it(engine: Engine) -> None:
    shapes = [RequestShape(0.0, 5, 3), RequestShape(0.0, 10, 2, after=0, think_s=0.05), RequestShape(0.0, 2, 1)]
    by_length = {
        len(output.prompt_token_ids): output for output in run_load(engine, shapes, [[1] * 5, [2] * 2, [3] * 2])
    }
    first, second = by_length[5], by_length[10]
    # What the executor really answered comes before what is new.
    assert second.prompt_token_ids == [1] * 5 + [7] * 3 + [2] * 2
    ended_s = first.metrics.arrival_s + first.metrics.e2e_s
    assert second.metrics.arrival_s == pytest.approx(ended_s + 0.05, abs=1e-9)
    # Pages of 4: of the 8 tokens that were there before, all but the last one's page is surely found.
    assert second.metrics.num_prefix_hit_tokens >= 4
