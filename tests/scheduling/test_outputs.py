"""What a completed step brings: tokens, ends, log-probabilities, and errors that cost one request."""

from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.outputs import TokenLogprobs
from sarathi_jax.scheduling.schedule import ScheduledRow, StepResult

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "tokens", "reason"),
    [
        ({"eos_token_ids": (2,)}, [5, 2], "stop"),
        ({"eos_token_ids": (2,), "ignore_eos": True}, [5, 2, 2, 5], "length"),
        ({"stop_token_ids": (3,), "ignore_eos": True}, [5, 5, 3], "stop"),
        ({"eos_token_ids": (2,), "min_tokens": 2}, [2, 2, 2], "stop"),
        ({"eos_token_ids": (2,)}, [5, 5, 5, 2], "stop"),
        ({}, [2, 2, 2, 2], "length"),
    ],
)
def test_a_request_ends_by_token_or_length(
    options: dict[str, Any], tokens: list[int], reason: str, make_request: Make, make_stepper: Make
) -> None:
    request = make_request("a", 3, max_tokens=4, **options)
    stepper = make_stepper(request)
    outputs = [stepper.step(token_id)[1][0] for token_id in tokens]
    assert [output.finish_reason for output in outputs] == [*[None] * (len(tokens) - 1), reason]
    assert outputs[-1].stop_token_id == (tokens[-1] if reason == "stop" else None)
    assert request.output_token_ids == tokens
    assert not stepper.scheduler.has_unfinished


def test_times_are_those_of_first_schedule_first_token_and_end(make_request: Make, make_stepper: Make) -> None:
    request = make_request("a", 20, max_tokens=2, arrival_s=1.0)
    scheduler = make_stepper(request).scheduler
    for time_s in (2.0, 3.0, 4.0):
        schedule = scheduler.schedule(time_s)
        scheduler.complete(schedule, StepResult([7]), time_s + 0.5)
    assert (request.first_scheduled_s, request.first_token_s, request.finished_s) == (2.0, 3.5, 4.5)


def test_rows_of_one_token_come_first(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", [9, 8, 7]), make_request("b", 1), make_request("c", 30))
    schedule, _ = stepper.step()
    assert [(row.request_id, row.num_tokens) for row in schedule.rows] == [("b", 1), ("a", 3), ("c", 12)]
    assert (schedule.num_decode_rows, schedule.num_tokens, schedule.is_decode_only) == (1, 16, False)


def test_a_prefix_hit_is_counted_and_its_tokens_are_context(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 12, max_tokens=1))
    stepper.drain()
    stepper.scheduler.add(request := make_request("b", 14))
    row = stepper.step()[0].rows[0]
    assert request.num_prefix_hit_tokens == 12
    assert (row.start, row.token_ids, row.is_first) == (12, [13, 14], True)
    assert list(row.context_token_ids) == list(range(1, 13))


def test_the_token_after_a_chunk_is_told_where_it_is_known(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 20))
    assert [stepper.step()[0].rows[0].next_token_id for _ in range(3)] == [17, None, None]


@pytest.mark.parametrize("result", [{"is_finite": [True, False]}, {"token_ids": [7, 100]}, {"token_ids": [7, -1]}])
def test_a_row_gone_wrong_ends_its_request_alone(
    result: dict[str, Any], make_request: Make, make_stepper: Make
) -> None:
    stepper = make_stepper(make_request("good", 3), make_request("bad", [5] * 4))
    _, outputs = stepper.step(**result)
    by_id = {output.request.request_id: (output.token_id, output.finish_reason) for output in outputs}
    assert by_id == {"good": (7, None), "bad": (None, "error")}
    assert [row.request_id for row in stepper.step()[0].rows] == ["good"]


def test_pages_of_a_row_gone_wrong_are_never_found(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("bad", 20))
    stepper.step()
    stepper.step(is_finite=[False])
    stepper.scheduler.add(request := make_request("same", 20))
    stepper.step()
    assert request.num_prefix_hit_tokens == 0


def prompt_logprobs(row: Any) -> list[TokenLogprobs]:
    """Of the prompt tokens start + 1 .. start + num_tokens: each one's position in place of a probability."""
    last = min(row.start + row.num_tokens, row.num_prompt_tokens - 1)
    return [TokenLogprobs(float(position), 1, ()) for position in range(row.start + 1, last + 1)]


@pytest.mark.parametrize(
    "options", [{}, {"preempt_every_steps": 2}, {"preempt_every_steps": 2, "is_prefix_caching": False}]
)
def test_prompt_logprobs_come_once_and_whole(options: dict[str, Any], make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("warm", 40, max_tokens=1), **options)
    stepper.drain()
    stepper.scheduler.add(request := make_request("a", 40, max_tokens=4, prompt_logprobs=0))
    positions: list[float] = []
    while stepper.scheduler.has_unfinished:
        schedule = stepper.scheduler.schedule(0.0)
        given = [prompt_logprobs(row) for row in schedule.rows]
        outputs = stepper.complete(schedule, prompt_logprobs=given)
        positions += [each.logprob for output in outputs for each in output.prompt_logprobs or ()]
    assert positions == [float(position) for position in range(1, 40)]
    assert (request.num_prefix_hit_tokens, len(request.output_token_ids)) == (0, 4)


def test_logprobs_go_to_their_rows(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 3), make_request("b", [9, 9]))
    given = [TokenLogprobs(-1.0, 1, ()), None]
    _, outputs = stepper.step(logprobs=given)
    assert [output.logprobs for output in outputs] == given


def test_a_row_s_numbers_stand_where_the_scheduler_looks_for_them() -> None:
    assert ScheduledRow._fields[1:3] == ("start", "num_tokens") and ScheduledRow._fields[6] == "does_sample"
