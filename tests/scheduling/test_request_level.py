"""F27: a batch is whoever waits when nobody runs; it runs to its end, and nobody joins it."""

from collections.abc import Callable
from typing import Any

from sarathi_jax.scheduling.schedule import StepResult
from sarathi_jax.scheduling.scheduler import Scheduler

Make = Callable[..., Any]
PLAIN: dict[str, Any] = {"policy": "request_level", "token_budget": 64, "max_model_len": 64, "is_prefix_caching": False}


def step(scheduler: Scheduler, now_s: float) -> str:
    """One step at a time of the clock, as text."""
    schedule = scheduler.schedule(now_s)
    if schedule is None:
        return ""
    scheduler.complete(schedule, StepResult([7] * len(schedule.rows)), now_s)
    scheduler.check_integrity()
    return " ".join(f"{row.request_id}{row.num_tokens}" for row in schedule.rows)


def test_f27_all_prompts_are_read_before_anyone_decodes(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(*[make_request(name, 30, max_tokens=2) for name in "ABC"], **PLAIN)
    steps = ["".join(row.request_id for row in schedule.rows) for schedule in stepper.drain()]
    assert steps == ["AB", "C", "ABC"]


def test_f27_who_arrives_while_prompts_are_read_waits_for_the_next_batch(
    make_request: Make, make_scheduler: Make
) -> None:
    scheduler = make_scheduler(**PLAIN)
    for name, arrival_s in (("A", 0.0), ("B", 0.5), ("C", 1.0)):
        scheduler.add(make_request(name, 40, max_tokens=2, arrival_s=arrival_s))
    steps = [step(scheduler, 1.0)]
    scheduler.add(make_request("D", 4, max_tokens=2, arrival_s=1.5))
    steps += [step(scheduler, now_s) for now_s in (2.0, 3.0, 4.0, 5.0, 6.0)]
    assert steps == ["A40", "B40", "C40", "A1 B1 C1", "D4", "D1"]


def test_f27_nobody_takes_the_place_of_a_request_that_ended(make_request: Make, make_stepper: Make) -> None:
    requests = [make_request(name, 4, max_tokens=tokens) for name, tokens in (("A", 2), ("B", 5), ("C", 2))]
    stepper = make_stepper(*requests, **PLAIN, max_num_seqs=2)
    steps = ["".join(row.request_id for row in schedule.rows) for schedule in stepper.drain()]
    assert steps == ["AB", "AB", "B", "B", "B", "C", "C"]


def test_f27_pages_of_the_longest_request_bound_a_batch(make_request: Make, make_stepper: Make) -> None:
    """64 pages are 4 requests of 16, whatever the watermark."""
    stepper = make_stepper(*[make_request(name, 1, max_tokens=2) for name in "ABCDEF"], **PLAIN, watermark=0.5)
    steps = ["".join(row.request_id for row in schedule.rows) for schedule in stepper.drain()]
    assert steps == ["ABCD", "ABCD", "EF", "EF"]


def test_f27_a_preempted_request_comes_back_in_the_next_batch(make_request: Make, make_stepper: Make) -> None:
    """Forced at the fourth step: B is read again only when A has ended."""
    requests = [make_request(name, 4, max_tokens=6) for name in "AB"]
    stepper = make_stepper(*requests, **PLAIN, preempt_every_steps=4)
    steps = [" ".join(f"{row.request_id}{row.num_tokens}" for row in stepper.step()[0].rows) for _ in range(7)]
    assert steps == ["A4 B4", "A1 B1", "A1 B1", "A1", "A1", "A1", "B7"]


def test_f27_a_batch_of_one_token_outputs_ends_with_its_prompts(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(*[make_request(name, 40, max_tokens=1) for name in "ABC"], **PLAIN)
    assert ["".join(row.request_id for row in schedule.rows) for schedule in stepper.drain()] == ["A", "B", "C"]
