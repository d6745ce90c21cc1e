"""F27: whole prompts beside all decodes, and the pages of the longest request reserved for each."""

from collections.abc import Callable
from typing import Any

Make = Callable[..., Any]
# 64 tokens are 16 pages of 4: two requests fill half of the pool.
PLAIN: dict[str, Any] = {"policy": "orca", "token_budget": 72, "max_model_len": 64, "is_prefix_caching": False}


def test_f27_a_request_reserves_the_pages_of_the_longest_one(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("A", 5), **PLAIN)
    schedule, _ = stepper.step()
    assert len(schedule.rows[0].block_table) == 16
    assert stepper.scheduler.num_free_pages == 64 - 16
    stepper.drain()
    assert stepper.scheduler.num_free_pages == 64


def test_f27_a_reservation_grows_no_more(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("A", 5, max_tokens=59), **PLAIN)
    assert {len(schedule.rows[0].block_table) for schedule in stepper.drain()} == {16}


def test_f27_reservations_bound_who_runs(make_request: Make, make_stepper: Make) -> None:
    """63 pages: three requests of 16, although all five would need 10 pages at most."""
    stepper = make_stepper(*[make_request(name, 1, max_tokens=8) for name in "ABCDE"], **PLAIN, num_pages=63)
    steps = ["".join(row.request_id for row in schedule.rows) for schedule in stepper.drain()]
    assert steps == ["ABC"] * 8 + ["DE"] * 8


def test_f27_there_is_no_watermark(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(*[make_request(name, 1) for name in "ABCD"], **PLAIN, watermark=0.9)
    assert len(stepper.step()[0].rows) == 4


def test_f27_nobody_is_preempted(make_request: Make, make_stepper: Make) -> None:
    """The same requests make `sarathi` preempt: 3 of up to 16 pages in 32."""
    preempted = {}
    for policy in ("orca", "sarathi"):
        requests = [make_request(name, 8, max_tokens=56) for name in "ABC"]
        make_stepper(*requests, **{**PLAIN, "policy": policy}, num_pages=32).drain()
        preempted[policy] = sum(request.num_preemptions for request in requests) > 0
    assert preempted == {"orca": False, "sarathi": True}


def test_f27_an_abort_gives_the_reservation_back(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("A", 5), make_request("B", 5), **PLAIN)
    stepper.step()
    stepper.scheduler.abort("A")
    stepper.scheduler.check_integrity()
    assert stepper.scheduler.num_free_pages == 64 - 16


def test_f27_found_pages_are_part_of_the_reservation(make_request: Make, make_stepper: Make) -> None:
    """Of 21 tokens 5 full pages are shared, so that the second request takes 11 new ones."""
    stepper = make_stepper(make_request("A", 21), **{**PLAIN, "is_prefix_caching": True})
    stepper.step()
    stepper.scheduler.add(make_request("B", 21))
    schedule, _ = stepper.step()
    assert [(row.request_id, row.num_tokens, len(row.block_table)) for row in schedule.rows] == [
        ("A", 1, 16), ("B", 1, 16),
    ]  # fmt: skip
    assert stepper.scheduler.num_free_pages == 64 - 16 - 11


def test_f27_samples_of_a_prompt_reserve_each_for_itself(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("A", 8, n=3), **PLAIN)
    assert [len(stepper.step()[0].rows) for _ in range(2)] == [1, 3]
    # One page of the prompt is shared; the other one's last token is computed by each.
    assert stepper.scheduler.num_free_pages == 64 - 16 - 2 * 15


def test_f27_a_prompt_waits_until_the_budget_holds_it_beside_all_decodes(
    make_request: Make, make_stepper: Make
) -> None:
    stepper = make_stepper(make_request("A", 60, max_tokens=2), make_request("B", 60, max_tokens=2), **PLAIN)
    steps = [[(row.request_id, row.num_tokens) for row in schedule.rows] for schedule in stepper.drain()]
    assert steps == [[("A", 60)], [("A", 1), ("B", 60)], [("B", 1)]]
