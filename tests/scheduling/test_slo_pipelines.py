"""The `slo` policy in pipelines of two stages, with steps of 8 ms and 0.1 ms a token."""

from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.scheduling.schedule import Schedule, StepResult

Make = Callable[..., Any]


def chunks(schedule: Schedule) -> dict[str, int]:
    return {row.request_id: row.num_tokens for row in schedule.rows}


def planned(machine: Any, now_s: float) -> list[tuple[str, int]]:
    """Names and tokens in the policy's order."""
    plan = machine.policy.plan(machine.scheduler.view(now_s))
    return [(request.request_id, num_tokens) for request, num_tokens in plan.chunks]


@pytest.fixture
def make_pipeline(make_policy: Make, make_machine: Make, line_times: Make) -> Callable[..., Any]:
    def make(tbt_slo_ms: float, **options: Any) -> Any:
        return make_machine(make_policy(tbt_slo_ms, times=line_times(8e-3)), num_microbatches=2, **options)

    return make


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        # A token of 2048 takes 0.1039 ms; of 768 1.06 times as long, of 640 1.083 times: over 1.08.
        ([1500], 768),  # a larger one would leave the other microbatch less to read than this one
        ([3000], 1408),
        ([5000], 2048),  # its next chunk goes right behind
        ([2100, 2100], 2048),
    ],
)
def test_f22_microbatches_are_alike(lengths: list[int], expected: int, make_pipeline: Make, make_request: Make):
    machine = make_pipeline(10_000)
    machine.add(*(make_request(str(index), length) for index, length in enumerate(lengths)))
    assert sum(num_tokens for _, num_tokens in planned(machine, 0.0)) == expected


def test_f22_a_prompts_chunks_follow_one_another_and_its_decodes_do_not(make_pipeline: Make, make_request: Make):
    """Two microbatches are under way at a time: 5,000 tokens go through without a gap, and the token after them is there when the last of them have left."""
    machine = make_pipeline(10_000)
    machine.add(make_request("prompt", 5000, max_tokens=2))
    scheduler, schedules = machine.scheduler, list[Schedule]()
    while (schedule := scheduler.schedule(0.0)) is not None:
        schedules.append(schedule)
        if len(schedules) > 1:
            scheduler.complete(schedules[-2], StepResult([1]), 0.0)
    assert [each.num_tokens for each in schedules] == [2048, 1408, 768, 768, 8]
    scheduler.complete(schedules[-1], StepResult([1]), 0.0)
    assert chunks(scheduler.schedule(0.0)) == {"prompt": 1}


def test_a_full_house_gets_no_long_steps(make_pipeline: Make, make_request: Make):
    """3 of 4 slots are taken, which is more than 60 %."""
    machine = make_pipeline(10_000, max_num_seqs=4)
    machine.add(*(make_request(f"decode-{index}", 10, max_tokens=50) for index in range(3)))
    machine.scheduler.complete(machine.scheduler.schedule(0.0), StepResult([1] * 3), 0.0)
    machine.add(*(make_request(str(index), 5000) for index in range(5)))
    assert sum(num_tokens for _, num_tokens in planned(machine, 0.0)) == 768


@pytest.mark.parametrize(
    ("tbt_slo_ms", "expected"),
    [
        # Its own tokens come three stage times after the last ones, 2/3 of 90 ms are 60: 520 tokens. Those of the other microbatch wait for one stage: 90, 768.
        (90, (512, 768)),
        (60, (256, 512)),  # 40 ms: 320; 60 ms: 520
    ],
)
def test_f22_a_pipeline_leaves_room_for_the_microbatch_between(
    tbt_slo_ms: float, expected: tuple[int, int], make_pipeline: Make, make_request: Make
):
    machine = make_pipeline(tbt_slo_ms)
    machine.add(make_request("decode", 10, max_tokens=50))
    scheduler = machine.scheduler
    scheduler.complete(scheduler.schedule(0.0), StepResult([1]), 0.0)
    machine.add(make_request("prompt", 5000), make_request("other", 5000))
    first, second = scheduler.schedule(0.0), scheduler.schedule(0.0)
    assert (first.num_tokens, second.num_tokens) == expected and "decode" not in chunks(second)
