"""Requests that end from outside or lose their step, and a step scheduled while the one before is in flight."""

from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_abort_at_any_moment_frees_all_it_held(num_steps: int, make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 20), make_request("b", 20))
    for _ in range(num_steps):
        stepper.step()
    assert [request.finish_reason for request in stepper.scheduler.abort("a")] == ["abort"]
    assert stepper.scheduler.abort("a") == stepper.scheduler.abort("unknown") == []
    stepper.scheduler.check_integrity()
    stepper.drain()
    assert stepper.scheduler.num_free_pages == 64


def test_an_abort_changes_nothing_for_others(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 4), make_request("b", 4), is_prefix_caching=False)
    before = stepper.step()[0].rows[1]
    stepper.scheduler.abort("a")
    after = stepper.step()[0].rows[0]
    assert (after.request_id, after.start, after.batch_slot) == ("b", 4, before.batch_slot)
    assert list(after.block_table)[:1] == list(before.block_table)


def test_finish_ends_a_request_once(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(request := make_request("a", 4))
    stepper.step()
    assert stepper.scheduler.finish("a", "stop", 3.0)
    assert not stepper.scheduler.finish("a", "abort")
    assert (request.finish_reason, request.finished_s, request.output_token_ids) == ("stop", 3.0, [7])


def test_queries(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 32, n=2), make_request("b", 4), max_num_seqs=1)
    scheduler = stepper.scheduler
    assert (scheduler.num_waiting, scheduler.num_running, scheduler.num_in_flight) == (3, 0, 0)
    stepper.step()
    assert (scheduler.num_waiting, scheduler.num_running, scheduler.num_free_pages) == (2, 1, 56)
    assert scheduler.kv_usage == 8 / 64
    assert scheduler.get("a").is_prefilling
    assert scheduler.get("c") is None


# ---- one step in flight while the next is scheduled


def test_the_row_of_a_pending_token_has_no_token_ids(make_request: Make, make_stepper: Make) -> None:
    scheduler = make_stepper(make_request("a", 3)).scheduler
    first, second = scheduler.schedule(0.0), scheduler.schedule(0.0)
    assert (first.rows[0].token_ids, first.rows[0].num_output_tokens) == ([1, 2, 3], 0)
    row = second.rows[0]
    assert (row.token_ids, row.start, row.num_tokens, row.num_output_tokens) == (None, 3, 1, 1)


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_no_row_is_scheduled_past_the_length(max_tokens: int, make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(request := make_request("a", 3, max_tokens=max_tokens))
    in_flight = [stepper.scheduler.schedule(0.0)]
    num_rows = 1
    while in_flight[0]:
        in_flight.append(stepper.scheduler.schedule(0.0))
        num_rows += in_flight[1] is not None
        stepper.complete(in_flight.pop(0))
    assert (num_rows, len(request.output_token_ids)) == (max_tokens, max_tokens)


def test_a_row_in_flight_behind_the_end_is_dropped(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(request := make_request("a", 3, eos_token_ids=(2,)))
    first, second = stepper.scheduler.schedule(0.0), stepper.scheduler.schedule(0.0)
    assert [output.finish_reason for output in stepper.complete(first, 2)] == ["stop"]
    assert stepper.complete(second, 9) == []
    assert request.output_token_ids == [2]
    assert stepper.scheduler.num_free_pages == 64


def test_a_row_in_flight_of_an_aborted_request_is_dropped(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(request := make_request("a", 8))
    schedule = stepper.scheduler.schedule(0.0)
    stepper.scheduler.abort("a")
    assert stepper.complete(schedule) == []
    assert request.output_token_ids == []
    assert len(stepper.scheduler.kv_pages.cache) == 0


def test_a_request_preempted_in_flight_keeps_the_token_and_waits_for_it(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 8), preempt_every_steps=2)
    first = stepper.scheduler.schedule(0.0)
    assert stepper.scheduler.schedule(0.0) is None
    assert [output.token_id for output in stepper.complete(first, 42)] == [42]
    assert len(stepper.scheduler.kv_pages.cache) == 0
    schedule, _ = stepper.step()
    assert schedule.preempted_request_ids == ("a",)
    assert schedule.rows[0].token_ids == [1, 2, 3, 4, 5, 6, 7, 8, 42]


def test_a_request_preempted_in_flight_may_end_by_that_token(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(request := make_request("a", 8, eos_token_ids=(2,)), preempt_every_steps=2)
    first = stepper.scheduler.schedule(0.0)
    stepper.scheduler.schedule(0.0)
    assert [output.finish_reason for output in stepper.complete(first, 2)] == ["stop"]
    assert (request.num_preemptions, stepper.scheduler.has_unfinished) == (1, False)


def test_a_page_is_found_only_after_its_step_completed(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 12))
    first = stepper.scheduler.schedule(0.0)
    stepper.scheduler.add(early := make_request("early", 12))
    second = stepper.scheduler.schedule(0.0)
    stepper.complete(first)
    stepper.scheduler.add(late := make_request("late", 12))
    third = stepper.scheduler.schedule(0.0)
    assert (early.num_prefix_hit_tokens, late.num_prefix_hit_tokens) == (0, 8)
    stepper.complete(second)
    stepper.complete(third)


def test_results_are_taken_once_and_in_order(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 8))
    first, second = stepper.scheduler.schedule(0.0), stepper.scheduler.schedule(0.0)
    with pytest.raises(AssertionError, match="step 1 is not the oldest one in flight"):
        stepper.complete(second)
    stepper.complete(first)
    with pytest.raises(AssertionError, match="step 0 is not the oldest one in flight"):
        stepper.complete(first)


# ---- a step that took the KV cache with it


def test_after_a_failed_step_all_start_over_with_their_tokens(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 4), make_request("b", 30), make_request("c", 30))
    stepper.step(50)
    stepper.step(51)
    failing = stepper.scheduler.schedule(0.0)
    stepper.scheduler.fail_step(failing)
    stepper.scheduler.check_integrity()
    assert [request.request_id for request in stepper.scheduler.view(0.0).waiting] == ["a", "b", "c"]
    assert (len(stepper.scheduler.kv_pages.cache), stepper.scheduler.num_free_pages) == (0, 64)
    row = stepper.step()[0].rows[0]
    assert (row.request_id, row.start, row.is_first) == ("a", 0, True)
    assert row.token_ids == [1, 2, 3, 4, 50, 51]


def test_a_failed_step_takes_the_one_behind_it_along(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(request := make_request("a", 4, max_tokens=3))
    first, second = stepper.scheduler.schedule(0.0), stepper.scheduler.schedule(0.0)
    stepper.scheduler.fail_step(first)
    assert stepper.complete(second) == []
    stepper.drain()
    assert request.output_token_ids == [7, 7, 7]


def test_the_step_behind_a_failed_one_may_fail_too(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(request := make_request("a", 4, max_tokens=3))
    first, second = stepper.scheduler.schedule(0.0), stepper.scheduler.schedule(0.0)
    stepper.scheduler.fail_step(first)
    schedule, _ = stepper.step()
    assert schedule.step == 2
    stepper.scheduler.fail_step(second)
    assert request.output_token_ids == [7]
    with pytest.raises(AssertionError, match="step 0 is not in flight"):
        stepper.scheduler.fail_step(first)


def test_a_forced_preemption_always_lets_a_token_through(make_request: Make, make_stepper: Make) -> None:
    # Every step, with a prompt of several chunks and nothing cached: without that rule no step would ever finish the prompt.
    options = {"preempt_every_steps": 1, "is_prefix_caching": False}
    stepper = make_stepper(request := make_request("a", 40, max_tokens=3), **options)
    assert len(stepper.drain()) == 9
    assert (request.num_preemptions, len(request.output_token_ids)) == (2, 3)
