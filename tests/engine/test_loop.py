"""The loop over a device without jax: plain and overlapped give the same tokens, failed steps are run again, records tell what was done."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sarathi_jax.engine.records import step_seconds
from sarathi_jax.errors import EngineError, GroupError
from sarathi_jax.sampling_params import SamplingParams

PROMPTS = [list(range(1, 1 + size)) for size in (1, 5, 40, 13, 22, 9, 3)]
type MakeRig = Callable[..., Any]
type Expected = Callable[..., list[int]]


def params(max_tokens: int = 8, **options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "seed": 1, **options})


def add_all(rig: Any, max_tokens: int = 8) -> dict[str, list[int]]:
    """Every prompt once. Returns: prompts by request."""
    return {rig.engine.add_request(prompt, params(max_tokens)): prompt for prompt in PROMPTS}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sarathi_jax.engine.loop")


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("options", [{}, {"preempt_every_steps": 2}, {"num_pages": 16}, {"token_budget": 4}])
def test_tokens_are_what_they_must_be(
    make_rig: MakeRig, expected_tokens: Expected, overlap: bool, options: dict[str, Any]
):
    rig = make_rig(overlap=overlap, **options)
    prompts, outputs = add_all(rig), rig.outputs()
    assert {name: output.outputs[0].token_ids for name, output in outputs.items()} == {
        name: expected_tokens(prompt, 1, 8) for name, prompt in prompts.items()
    }
    assert rig.engine.scheduler.num_free_pages == rig.engine.scheduler.limits.num_pages


def test_the_overlapped_loop_has_one_step_more_in_flight(make_rig: MakeRig):
    """It dispatches a second step before it reads the first, whose token it therefore does not know."""
    rig = make_rig(overlap=True)
    rig.engine.add_request([5], params(3))
    assert rig.engine.step() == []
    assert rig.executor.num_steps == 1
    assert len(rig.engine.step()) == 1
    assert rig.executor.num_steps == 2
    assert [schedule.rows[0].token_ids for schedule in rig.executor.schedules] == [[5], None]


def test_the_plain_loop_reads_each_step_before_the_next(make_rig: MakeRig, expected_tokens: Expected):
    rig = make_rig(overlap=False)
    rig.engine.add_request([5], params(3))
    events = [rig.engine.step() for _ in range(3)]
    assert [event.token_ids for [event] in events] == [[token] for token in expected_tokens([5], 1, 3)]
    assert all(schedule.rows[0].token_ids is not None for schedule in rig.executor.schedules)


@pytest.mark.parametrize("overlap", [True, False])
def test_no_step_runs_after_the_last_token_is_known_to_be_the_last(make_rig: MakeRig, overlap: bool):
    rig = make_rig(overlap=overlap)
    rig.engine.add_request([5], params(4))
    rig.drain()
    assert rig.executor.num_steps == 4
    assert rig.engine.step() == []


@pytest.mark.parametrize("overlap", [True, False])
def test_records_tell_what_each_step_did(make_rig: MakeRig, overlap: bool):
    """40 prompt tokens by 16, then a short prompt beside the first decodes: exact numbers for every step."""
    rig = make_rig(overlap=overlap, step_s=2.0)
    rig.engine.add_request(PROMPTS[2], params(4))
    rig.engine.add_request(PROMPTS[3][::-1], params(2))
    rig.drain()
    records = list(rig.engine.records)
    assert [(each.num_decode_tokens, each.num_prefill_tokens, each.num_rows) for each in records] == [
        (0, 16, 1),
        (0, 16, 1),
        (0, 16, 2),
        (1, 5, 2),
        (2, 0, 2),
        (1, 0, 1),
    ]
    assert [each.step for each in records] == list(range(6))
    assert [each.bucket.num_tokens for each in records] == [16, 16, 16, 8, 8, 8]
    assert [each.end_s for each in records] == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    begun = [0.0, 0.0, 2.0, 4.0, 6.0, 8.0] if overlap else [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert [each.start_s for each in records] == begun
    assert step_seconds(records) == [2.0] * 6


def test_records_count_preemptions_and_recomputed_tokens_as_prefill(make_rig: MakeRig):
    rig = make_rig(overlap=False, preempt_every_steps=3, is_prefix_caching=False)
    rig.engine.add_request([1, 2, 3], params(6))
    output = rig.outputs()["request-0"].outputs[0]
    records = list(rig.engine.records)
    assert sum(record.num_preemptions for record in records) == output.metrics.num_preemptions > 0
    recomputed = [record.num_prefill_tokens for record in records if record.num_preemptions]
    assert all(count >= 1 for count in recomputed)
    assert sum(record.num_decode_tokens for record in records) == 5 - len(recomputed)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("failing", [{0}, {3}, {1, 2}, {2, 5, 8, 11, 14}, {4, 5, 9}])
def test_failed_steps_change_no_token(make_rig: MakeRig, expected_tokens: Expected, overlap: bool, failing: set[int]):
    rig = make_rig(overlap=overlap)
    rig.executor.failing_steps = failing
    prompts, outputs = add_all(rig), rig.outputs()
    for name, prompt in prompts.items():
        assert outputs[name].outputs[0].token_ids == expected_tokens(prompt, 1, 8)


@pytest.mark.parametrize("overlap", [True, False])
def test_failures_whoever_is_in_the_step_are_too_many(make_rig: MakeRig, overlap: bool):
    """Nobody ends for it. Seven are suspected in the end: so many failures are allowed as several to blame may take."""
    rig = make_rig(overlap=overlap)
    rig.executor.failing_steps = set(range(4, 100))
    add_all(rig)
    with pytest.raises(EngineError, match=r"got another failure, whoever was in them: Step \d+ must run.* Start"):
        rig.drain()
    assert rig.engine.scheduler.num_running + rig.engine.scheduler.num_waiting == len(PROMPTS)
    assert rig.executor.num_steps <= 4 + 17 + (2 if overlap else 0)


@pytest.mark.parametrize("overlap", [True, False])
def test_the_loop_goes_on_after_it_gave_up(make_rig: MakeRig, expected_tokens: Expected, overlap: bool):
    """As a person would: drop what ran, and go on with a device that works again."""
    rig = make_rig(overlap=overlap)
    rig.executor.failing_steps = set(range(4, 100))
    prompts = add_all(rig)
    with pytest.raises(EngineError):
        rig.drain()
    for name in prompts:
        rig.engine.abort(name)
    rig.executor.failing_steps = set()
    rig.engine.add_request(PROMPTS[3], params(5), request_id="later")
    assert rig.outputs()["later"].outputs[0].token_ids == expected_tokens(PROMPTS[3], 1, 5)


def test_a_success_between_failures_starts_the_count_again(make_rig: MakeRig, expected_tokens: Expected):
    rig = make_rig(overlap=False)
    rig.executor.failing_steps = {1, 2, 4, 5, 7, 8}
    rig.engine.add_request([9], params(6))
    assert rig.outputs()["request-0"].outputs[0].token_ids == expected_tokens([9], 1, 6)


def test_steps_that_fail_every_time_they_count_are_given_up(make_rig: MakeRig):
    """Overlapped: the step behind a failed one runs well, but is of no use. It must not start the count again."""
    rig = make_rig(overlap=True)
    rig.executor.failing_steps = {0, 2, *range(4, 100)}
    rig.engine.add_request([9], params(6))
    assert rig.outputs()["request-0"].outputs[0].stop_reason == "internal_error"
    rig.engine.add_request([9], params(6))
    with pytest.raises(EngineError, match="whoever was in them"):
        rig.drain()
    assert rig.executor.num_steps < 15


def test_a_failed_step_is_logged(make_rig: MakeRig, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR, logger="sarathi_jax.engine.loop")
    rig = make_rig(overlap=False)
    rig.executor.failing_steps = {1}
    rig.engine.add_request([9], params(3))
    rig.drain()
    assert [record.message for record in caplog.records] == ["Step 1 must run, got a fault: try again."]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("at_submit", [True, False])
def test_a_lost_process_is_final(make_rig: MakeRig, caplog: pytest.LogCaptureFixture, overlap: bool, at_submit: bool):
    """No step is tried again, and every later turn says the same."""
    caplog.set_level(logging.ERROR, logger="sarathi_jax.engine.loop")
    rig, lost = make_rig(overlap=overlap), GroupError("process 1 is lost")
    add_all(rig)
    rig.engine.step()
    submit = rig.executor.submit

    def submit_to_nobody(schedule: Any) -> Any:
        if at_submit:
            raise lost
        return replace(submit(schedule), outcome=lost)

    rig.executor.submit = submit_to_nobody
    with pytest.raises(GroupError, match="process 1 is lost"):
        rig.drain()
    count = rig.executor.num_steps
    for _ in range(3):
        with pytest.raises(GroupError, match="process 1 is lost"):
            rig.engine.step()
    assert rig.executor.num_steps == count
    assert caplog.records == []
    rig.engine.close()
    assert rig.executor.is_closed


def test_requests_that_can_not_run_are_a_fault(make_rig: MakeRig):
    """A scheduler that gives nothing to run while requests wait would hang its callers."""
    rig = make_rig(overlap=False)
    rig.engine.add_request([9], params(3))
    rig.engine.scheduler.schedule = lambda now_s: None
    with pytest.raises(EngineError, match="Some request must be able to run, got none of 1 waiting and 0 running"):
        rig.engine.step()
