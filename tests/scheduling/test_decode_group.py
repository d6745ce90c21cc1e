"""Requests that decode together over several steps, and those that leave them, come back, or end while their row is in flight."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult, row_columns

Make = Callable[..., Any]


def decode_rows(schedule: Schedule) -> list[ScheduledRow]:
    return [row for row in schedule.rows if not row.is_first and row.num_tokens == 1]


def test_rows_of_a_group_go_on_from_step_to_step(make_request: Make, make_stepper: Make) -> None:
    """Two decodes of 3 and 6 tokens, 4 a page: one begins a page in the group's third step, the other in its fourth. Slots stay, tables grow, and no older row changes."""
    stepper = make_stepper(make_request("a", 3), make_request("b", 6))
    stepper.step()
    schedules = [stepper.step()[0] for _ in range(4)]
    assert [[row.start for row in each.rows] for each in schedules] == [[3, 6], [4, 7], [5, 8], [6, 9]]
    assert [row_columns(each.rows)[0].tolist() for each in schedules] == [[3, 6], [4, 7], [5, 8], [6, 9]]
    assert [[len(row.block_table) for row in each.rows] for each in schedules] == [[1, 2], [2, 2], [2, 3], [2, 3]]
    assert [[row.batch_slot for row in each.rows] for each in schedules] == [[0, 1]] * 4
    assert [[list(row.token_ids or ()) for row in each.rows] for each in schedules] == [[[7], [7]]] * 4
    assert [each.num_tokens for each in schedules] == [2] * 4


def test_who_comes_back_has_another_slot_and_other_pages(make_request: Make, make_stepper: Make) -> None:
    """Five pages, one of them kept free at admission, where two requests want four each: b loses its own, reads again when a has ended, and decodes as the only one, as a did before it."""
    stepper = make_stepper(make_request("a", 6), make_request("b", 6), num_pages=5, is_prefix_caching=False)
    schedules = stepper.drain()
    preempted = [place for place, each in enumerate(schedules) if each.preempted_request_ids]
    assert len(preempted) == 1 and schedules[preempted[0]].preempted_request_ids == ("b",)
    alone = [row for each in schedules[preempted[0] :] for row in decode_rows(each)]
    begins_again = next(place for place, row in enumerate(alone) if row.request_id == "b")
    assert {row.request_id for row in alone[:begins_again]} == {"a"}
    assert {row.batch_slot for row in alone[begins_again:]} == {0}, "a's, that had slot 0 before"
    starts = [row.start for row in alone[begins_again:]]
    assert starts == list(range(starts[0], 13)), "up to the last of 6 + 8 tokens, which is never read"


def test_only_whose_own_stop_token_it_is_ends_with_it(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 3, stop_token_ids=[9]), make_request("b", 3, stop_token_ids=[8]))
    stepper.step()
    schedule = stepper.scheduler.schedule(0.0)
    outputs = stepper.scheduler.complete(schedule, StepResult([8, 8]), 0.0)
    assert [(each.request.request_id, each.finish_reason, each.stop_token_id) for each in outputs] == [
        ("a", None, None),
        ("b", "stop", 8),
    ]


def test_a_row_of_one_that_ended_takes_nobody_elses_token(make_request: Make, make_stepper: Make) -> None:
    """b is aborted while two rows of it are in flight: neither brings it a token, and those after it get their own."""
    stepper = make_stepper(*[make_request(name, 3) for name in "abc"])
    stepper.step()
    steps = [stepper.scheduler.schedule(0.0) for _ in range(2)]
    stepper.scheduler.abort("b")
    for token_id, schedule in zip((20, 30), steps, strict=True):
        outputs = stepper.scheduler.complete(schedule, StepResult([token_id, token_id + 1, token_id + 2]), 0.0)
        assert [(each.request.request_id, each.token_id) for each in outputs] == [("a", token_id), ("c", token_id + 2)]
        assert [each.request_id for each in outputs.decodes] == ["a", "c"]
    a, c = (stepper.scheduler.get(name) for name in "ac")
    assert (a.output_token_ids, c.output_token_ids) == ([7, 20, 30], [7, 22, 32])
    stepper.scheduler.check_integrity()


@pytest.mark.parametrize("num_ahead", [1, 2])
def test_tokens_in_flight_are_pending_and_others_are_there(
    make_request: Make, make_stepper: Make, num_ahead: int
) -> None:
    stepper = make_stepper(make_request("a", 3), make_request("b", 5))
    stepper.step()
    first = stepper.scheduler.schedule(0.0)
    ahead = [stepper.scheduler.schedule(0.0) for _ in range(num_ahead)]
    assert [row.token_ids for row in first.rows] == [[7], [7]]
    assert [row.token_ids for each in ahead for row in each.rows] == [None, None] * num_ahead
    for schedule in (first, *ahead):
        stepper.complete(schedule, 9)
    assert [row.token_ids for row in stepper.step()[0].rows] == [[9], [9]]


def test_ids_that_are_known_are_not_looked_at_and_all_else_is(make_request: Make, make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1, 2, 100]), are_ids_known=True)
    with pytest.raises(RequestError, match="leaves no room for output"):
        scheduler.add(make_request("b", [1] * 128), are_ids_known=True)
    with pytest.raises(RequestError, match="at least one token"):
        scheduler.add(make_request("c", []), are_ids_known=True)
    with pytest.raises(RequestError, match="must be between 0 and 99"):
        scheduler.add(make_request("d", [100]))


def test_sampled_ids_are_looked_at_unless_they_are_known(make_request: Make, make_stepper: Make) -> None:
    for are_ids_known, reason in ((False, "error"), (True, None)):
        stepper = make_stepper(make_request("a", 3))
        _, (output,) = stepper.step(100, are_ids_known=are_ids_known)
        assert output.finish_reason == reason


def test_a_page_that_a_decode_has_filled_is_found_while_it_goes_on(make_request: Make, make_stepper: Make) -> None:
    """After a prompt of 3 and six more tokens, 8 are computed: two pages of 4. Another prompt that begins with them starts behind these."""
    stepper = make_stepper(make_request("a", 3, max_tokens=20))
    for _ in range(6):
        stepper.step()
    stepper.scheduler.add(make_request("b", [1, 2, 3, *[7] * 6]))
    schedule, _ = stepper.step()
    assert [(row.request_id, row.start, row.num_tokens) for row in schedule.rows] == [("a", 8, 1), ("b", 8, 1)]


class WatchedRequest(Request):
    """One that can be seen to be gone."""

    __slots__ = ("__weakref__",)


def test_who_was_in_the_last_step_is_let_go(make_stepper: Make) -> None:
    """An idle scheduler holds nobody's tokens."""
    stepper = make_stepper()
    request = WatchedRequest("a", [1, 2, 3], SamplingParams(max_tokens=5), arrival_s=0.0, seed=0, max_tokens=5)
    watched = weakref.ref(request)
    stepper.scheduler.add(request)
    del request
    stepper.drain()
    gc.collect()
    assert watched() is None
