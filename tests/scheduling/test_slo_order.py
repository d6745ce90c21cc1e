"""In which order the `slo` policy reads prompts, and who is let in, with steps of 1 ms and 0.1 ms a token."""

from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.scheduling.schedule import Schedule

Make = Callable[..., Any]
# Of a prompt alone in steps of 2048 tokens: (1 + 204.8) / 2048 ms.
TOKEN_S = 0.2058 / 2048


def chunks(schedule: Schedule) -> dict[str, int]:
    return {row.request_id: row.num_tokens for row in schedule.rows}


def planned(machine: Any, now_s: float) -> list[tuple[str, int]]:
    """Names and tokens in the policy's order."""
    plan = machine.policy.plan(machine.scheduler.view(now_s))
    return [(request.request_id, num_tokens) for request, num_tokens in plan.chunks]


def test_short_prompts_go_before_long_ones_that_came_with_them(
    make_policy: Make, make_machine: Make, make_request: Make
):
    machine = make_machine(make_policy(50))
    machine.add(make_request("long", 3000), make_request("short", 100))
    assert planned(machine, 0.0) == [("short", 100), ("long", 28)]


def test_a_prompt_that_was_begun_lets_a_short_one_pass(make_policy: Make, make_machine: Make, make_request: Make):
    machine = make_machine(make_policy(50))
    machine.add(make_request("long", 3000))
    machine.step()
    machine.add(make_request("short", 100, arrival_s=machine.now_s))
    assert planned(machine, machine.now_s) == [("short", 100), ("long", 28)]


@pytest.mark.parametrize(("arrival_s", "is_passed"), [(5.1, True), (5.2, False)])
def test_nobody_is_passed_by_those_who_come_much_later(
    arrival_s: float, is_passed: bool, make_policy: Make, make_machine: Make, make_request: Make
):
    """A first token is due after 18 times its prompt's own time: 18 * 2942 * TOKEN_S = 5.322 s, and for the short one 0.1809 s after it came. 2942 is what is
    typical after prompts of 3000 and 100 tokens: 3000 - 2 % of the difference."""
    assert 5.1 + 1800 * TOKEN_S < 18 * 2942 * TOKEN_S < 5.2 + 1800 * TOKEN_S
    machine = make_machine(make_policy(50))
    machine.add(make_request("long", 3000), make_request("short", 100, arrival_s=arrival_s))
    assert planned(machine, 5.5)[0][0] == ("short" if is_passed else "long")


@pytest.mark.parametrize(("arrival_s", "is_passed"), [(0.24, True), (0.32, False)])
def test_a_prompt_much_longer_than_what_is_typical_waits_no_longer_than_a_typical_one(
    arrival_s: float, is_passed: bool, make_policy: Make, make_machine: Make, make_request: Make
):
    """After 20 prompts of 100 and one of 8000: 258 tokens are typical; 254.84 when another one of 100 has come: 18 * 254.84 * TOKEN_S = 0.461 s."""
    machine = make_machine(make_policy(50))
    machine.add(*(make_request(str(index), 100, max_tokens=1) for index in range(20)))
    machine.drain()
    machine.add(make_request("long", 8000), make_request("short", 100, arrival_s=arrival_s))
    assert planned(machine, machine.now_s)[0][0] == ("short" if is_passed else "long")


def test_a_first_token_that_is_due_sooner_comes_sooner(make_policy: Make, make_machine: Make, make_request: Make):
    """The batch one is due within a minute, the others within 1 s; a long prompt has to begin sooner for that."""
    machine = make_machine(make_policy(50, ttft_slo_s=1.0))
    machine.add(make_request("batch", 10, slo_class="batch"), make_request("short", 10), make_request("long", 100))
    assert [name for name, _ in planned(machine, 0.0)] == ["long", "short", "batch"]


@pytest.mark.parametrize(
    ("lengths", "sizes", "expected"),
    [
        # With 8 ms a step, a token takes 0.1039 ms of 2048, 0.1208 ms of 384 and 0.1313 ms of 256: 1.16 and 1.26 times as long.
        ([380, 900, 3000], (), [380, 4]),  # 384 hold the first
        ([390, 900, 3000], (), [390, 122]),
        ([200, 900, 3000], (), [200, 900, 52]),  # 256 are too few
        ([900, 2500], (), [900, 124]),
        ([2500], (), [2048]),
        ([390, 900, 3000], (128, 256, 1024), [390, 634]),  # 512 would be padded
        ([380, 900], (64, 128), [380, 900]),  # all sizes are small: the largest, which is the budget
    ],
)
def test_a_step_ends_with_a_prompt_where_that_costs_little(
    lengths: list[int], sizes: tuple[int, ...], expected: list[int], make_policy: Make, make_machine: Make,
    make_request: Make, line_times: Make,
):  # fmt: skip
    """What else it could hold is only the beginning of another prompt, and would make the tokens of those late that end in it."""
    machine = make_machine(make_policy(10_000, times=line_times(8e-3), sizes=sizes))
    machine.add(*(make_request(str(index), length) for index, length in enumerate(lengths)))
    assert [num_tokens for _, num_tokens in planned(machine, 0.0)] == expected


def test_equal_prompts_are_read_one_after_the_other(make_policy: Make, make_machine: Make, make_request: Make):
    """What is left of a prompt that was begun takes less, so that it could wait longer than the other one: they would take turns, and both would come late."""
    machine = make_machine(make_policy(50, ttft_slo_s=2.0))
    machine.add(make_request("first", 5000), make_request("second", [5] * 5000))
    assert [chunks(machine.step().schedule) for _ in range(3)] == [
        {"first": 2048},
        {"first": 2048},
        {"first": 904, "second": 120},
    ]


@pytest.mark.parametrize(
    ("arrival_s", "now_s", "first"),
    [
        (0.5, 0.55, "long"),  # it has to begin by 1 - 4000 * TOKEN_S = 0.598 s
        (0.5, 0.65, "late"),  # it can't keep its second any more: whoever can goes first
        (9.9, 9.95, "late"),
        (9.9, 10.05, "long"),  # it has waited ten times its SLO
    ],
)
def test_what_is_lost_lets_others_pass_until_it_has_been_patient(
    arrival_s: float, now_s: float, first: str, make_policy: Make, make_machine: Make, make_request: Make
):
    machine = make_machine(make_policy(50, ttft_slo_s=1.0))
    machine.add(make_request("long", 4000), make_request("late", 100, arrival_s=arrival_s))
    assert planned(machine, now_s)[0][0] == first


def test_a_prompt_that_the_cache_knows_is_not_lost(make_policy: Make, make_machine: Make, make_request: Make):
    """3200 of its 3300 tokens were read before: 100 take 10 ms, so that at 0.9 s nothing is lost. Read from its beginning it would be, and let the other one pass."""
    machine = make_machine(make_policy(50, ttft_slo_s=1.0), is_prefix_caching=True)
    machine.add(make_request("before", 3200, max_tokens=1))
    machine.drain()
    machine.add(make_request("known", 3300), make_request("other", [5] * 200, arrival_s=0.1))
    assert planned(machine, 0.9) == [("known", 100), ("other", 28)]


def test_a_sample_whose_prompt_is_read_goes_first(make_policy: Make, make_machine: Make, make_request: Make):
    machine = make_machine(make_policy(50, ttft_slo_s=1.0), is_prefix_caching=True)
    machine.add(make_request("two", 1000, n=2))
    machine.step()
    machine.add(make_request("other", [5] * 200, arrival_s=2.9))
    assert [name for name, _ in planned(machine, 3.0)] == ["two", "two-1", "other"]


def test_who_lost_its_pages_in_its_output_goes_first(make_policy: Make, make_machine: Make, make_request: Make):
    machine = make_machine(make_policy(50, ttft_slo_s=1.0), preempt_every_steps=2)
    machine.add(make_request("victim", 100))
    machine.step()
    machine.add(make_request("other", 3000))
    schedule = machine.step().schedule
    assert schedule.preempted_request_ids == ("victim",)
    assert [(row.request_id, row.num_tokens) for row in schedule.rows] == [("victim", 101), ("other", 27)]


def test_nobody_is_hidden_behind_a_long_line_of_another_class(
    make_policy: Make, make_machine: Make, make_request: Make
):
    machine = make_machine(make_policy(50))
    machine.add(*(make_request(f"batch-{index}", 3000, slo_class="batch") for index in range(300)))
    machine.add(make_request("interactive", 100))
    assert planned(machine, 0.0)[0] == ("interactive", 100)


def test_so_many_prompts_may_be_unfinished_at_a_time(make_policy: Make, make_machine: Make, make_request: Make):
    """384 tokens a step. "next" is due before "begun" but could not be read whole either; when the rest of "begun" fits, in 256, it may begin."""
    machine = make_machine(make_policy(50), max_num_partial_prefills=1)
    machine.add(make_request("decode", 10, max_tokens=50))
    machine.step()
    machine.add(make_request("begun", 1000))
    machine.step()
    machine.add(make_request("next", 500))
    assert planned(machine, machine.now_s) == [("decode", 1), ("begun", 383)]
    machine.step()
    assert planned(machine, machine.now_s) == [("decode", 1), ("begun", 234), ("next", 21)]
