"""Priorities: who has the lower number is admitted first and loses its pages last, under every policy; who has the same goes by arrival."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from sarathi_jax.errors import RequestError
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.policies.slo import LOOKAHEAD
from sarathi_jax.scheduling.waiting_queue import WaitingQueue

Make = Callable[..., Any]
every_policy = pytest.mark.parametrize("policy", sorted(POLICIES))
on_demand = pytest.mark.parametrize("policy", ["sarathi", "vllm", "alternating", "slo"])
WHOLE = {"token_budget": 40, "max_model_len": 32, "is_prefix_caching": False}


def waiting(stepper: Any) -> str:
    return " ".join(request.request_id for request in stepper.scheduler.view(0.0).waiting)


def admitted(schedules: Any) -> str:
    return " ".join(row.request_id for schedule in schedules for row in schedule.rows if row.is_first)


# ---- who is admitted first


@every_policy
def test_lower_numbers_are_admitted_first_and_equal_ones_by_arrival(
    policy: str, make_request: Make, make_stepper: Make
) -> None:
    numbers = {"a": 5, "b": 0, "c": -1, "d": 0, "e": 5, "f": -(2**63), "g": 2**63 - 1}
    requests = [make_request(name, 4, max_tokens=1, priority=number) for name, number in numbers.items()]
    stepper = make_stepper(*requests, policy=policy, max_num_seqs=1, **WHOLE)
    assert waiting(stepper) == "f c b d a e g"
    assert admitted(stepper.drain()) == "f c b d a e g"


@every_policy
def test_who_comes_later_with_a_lower_number_passes_those_that_wait_and_stops_nobody_who_runs(
    policy: str, make_request: Make, make_stepper: Make
) -> None:
    stepper = make_stepper(
        make_request("running", 4, max_tokens=3, priority=9), make_request("waiting", 4), policy=policy,
        max_num_seqs=1, **WHOLE,
    )  # fmt: skip
    assert admitted([stepper.step()[0]]) == "waiting"
    stepper.scheduler.add(make_request("late", 4, max_tokens=2, priority=-1))
    schedules = stepper.drain()
    assert admitted(schedules) == "late running"
    assert not any(schedule.preempted_request_ids for schedule in schedules)


@every_policy
def test_one_that_does_not_fit_holds_back_higher_numbers(policy: str, make_request: Make, make_stepper: Make) -> None:
    """9 pages of 4, of which "first" takes 2, or 8 where those of 32 tokens are reserved; "large" needs 8, and "small", which might fit, waits behind it."""
    stepper = make_stepper(
        make_request("first", 8, max_tokens=2), policy=policy, num_pages=9, watermark=0.0, **WHOLE
    )  # fmt: skip
    stepper.step()
    stepper.scheduler.add(make_request("small", 4, max_tokens=1, priority=1))
    stepper.scheduler.add(make_request("large", 29, max_tokens=2))
    assert admitted(stepper.drain()) == "large small"


def test_a_partial_prompt_with_a_lower_number_goes_on_first(make_request: Make, make_stepper: Make) -> None:
    """Both are in the middle of their prompts; 16 tokens a step."""
    stepper = make_stepper(make_request("a", 40, priority=1), is_prefix_caching=False, long_prefill_token_threshold=8)
    stepper.step()
    stepper.scheduler.add(make_request("b", 40))
    chunks = [[(row.request_id, row.num_tokens) for row in stepper.step(0)[0].rows] for _ in range(2)]
    assert chunks == [[("a", 8), ("b", 8)], [("b", 8), ("a", 8)]]


# ---- who loses its pages


@on_demand
@pytest.mark.parametrize(
    ("numbers", "victim"), [((0, 0, 0), "c"), ((1, 0, 0), "a"), ((1, 1, 0), "b"), ((0, 2, 1), "b"), ((-1, -1, -2), "b")]
)
def test_the_youngest_of_the_highest_number_is_preempted(
    policy: str, numbers: tuple[int, ...], victim: str, make_request: Make, make_stepper: Make
) -> None:
    """6 pages of 4. Three prompts of 4 tokens take two each when they decode, and a third one at their 9th token."""
    requests = [
        make_request(name, 4, max_tokens=20, priority=number) for name, number in zip("abc", numbers, strict=True)
    ]
    stepper = make_stepper(*requests, policy=policy, num_pages=6, watermark=0.0, **WHOLE)
    while not (victims := stepper.step()[0].preempted_request_ids):
        pass
    assert victims == (victim,)


@pytest.mark.parametrize(("priority", "victim"), [(0, "prompt"), (1, "b")])
def test_slo_takes_the_cheapest_of_the_highest_number(
    priority: int, victim: str, make_request: Make, make_stepper: Make
) -> None:
    """12 pages of 4: three decodes have two each, and want a third one when they have 8 tokens; a prompt of which little is read has 6."""
    decodes = [make_request("o", 4, max_tokens=20)]
    decodes += [make_request(name, 4, max_tokens=20, priority=priority) for name in "ab"]
    limits = {"num_pages": 12, "watermark": 0.0, "is_prefix_caching": False, "long_prefill_token_threshold": 2}
    stepper = make_stepper(*decodes, policy="slo", token_budget=12, **limits)
    for _ in range(3):
        stepper.step()
    stepper.scheduler.add(make_request("prompt", 23))
    while not (victims := stepper.step()[0].preempted_request_ids):
        pass
    assert victims == (victim,)


def test_who_was_preempted_goes_before_the_never_run_of_its_number_and_after_lower_ones(
    make_request: Make, make_stepper: Make
) -> None:
    requests = [make_request(name, 8, max_tokens=20, priority=int(name != "a")) for name in "abc"]
    stepper = make_stepper(*requests, num_pages=7, watermark=0.0, is_prefix_caching=False, max_num_seqs=2)
    stepper.scheduler.add(make_request("d", 8, priority=2))
    while not (victims := stepper.step()[0].preempted_request_ids):
        pass
    assert victims == ("b",)
    stepper.scheduler.add(make_request("e", 8))
    assert waiting(stepper) == "e b c d"


def test_samples_have_their_prompts_number(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 4, n=3, priority=1), make_request("b", 4, priority=1), max_num_seqs=1)
    stepper.scheduler.add(make_request("c", 4))
    assert admitted([stepper.step()[0] for _ in range(9)]) == "c a"
    stepper.scheduler.add(make_request("d", 4))
    assert waiting(stepper) == "d a-1 a-2 b"


def test_after_a_failed_step_all_wait_in_their_order(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(
        *(make_request(name, 4, priority=number) for name, number in zip("abcd", (1, 0, 1, 0), strict=True))
    )
    scheduler = stepper.scheduler
    schedule = scheduler.schedule(0.0)
    scheduler.add(make_request("e", 4))
    scheduler.fail_step(schedule)
    assert waiting(stepper) == "b d e a c"


# ---- what is refused


@pytest.mark.parametrize(
    "priority", [1.5, 1.0, "high", "1", None, True, 2**63, -(2**63) - 1, 2**70, pytest.param(10**5000, id="huge")]
)
def test_what_is_no_whole_number_of_64_bits_is_refused(priority: Any, make_request: Make, make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    with pytest.raises(
        RequestError, match=r"priority must be a whole number between -2\*\*63 and 2\*\*63 - 1"
    ) as caught:
        scheduler.add(make_request("a", 4, priority=priority))
    assert caught.value.param == "priority" and not scheduler.has_unfinished


# ---- the order of `slo`


def order(machine: Any) -> list[str]:
    plan = machine.policy.plan(machine.scheduler.view(machine.now_s))
    return [request.request_id for request, _ in plan.chunks]


def test_slo_goes_by_number_before_slack_shares_and_outputs(
    make_policy: Make, make_machine: Make, make_request: Make
) -> None:
    """By itself it would read who lost its pages in its output first, then "short"."""
    machine = make_machine(make_policy(50, is_fair=True), preempt_every_steps=2)
    machine.add(make_request("victim", 30, priority=1, client="served"))
    machine.step()
    machine.scheduler._preempt(machine.scheduler.get("victim"))
    machine.add(make_request("long", 60, client="served"), make_request("short", 10, priority=1, client="new"))
    machine.add(make_request("first", 10, priority=-1, client="served"))
    assert order(machine) == ["first", "long", "victim", "short"]


def test_slo_looks_at_no_more_of_those_that_wait_however_many_numbers_there_are(
    make_policy: Make, make_machine: Make, make_request: Make
) -> None:
    machine = make_machine(make_policy(50))
    machine.add(*(make_request(str(number), 10, priority=-number) for number in range(1000)))
    seen = machine.policy._waiting(machine.scheduler.view(0.0))
    assert [request.request_id for request in seen] == [str(999 - number) for number in range(LOOKAHEAD)]


def test_slo_finds_who_ran_before_behind_lower_numbers(
    make_policy: Make, make_machine: Make, make_request: Make
) -> None:
    machine = make_machine(make_policy(50))
    machine.add(make_request("ran", 100, priority=1))
    machine.step()
    machine.scheduler._preempt(machine.scheduler.get("ran"))
    machine.add(make_request("new", 100))
    assert order(machine) == ["new", "ran"]


@pytest.mark.parametrize("is_fair", [False, True])
def test_slo_forgets_numbers_that_nobody_has_any_more(
    is_fair: bool, make_policy: Make, make_machine: Make, make_request: Make
) -> None:
    machine = make_machine(make_policy(50, is_fair=is_fair))
    for number in range(2000):
        machine.add(make_request(str(number), 10, priority=number))
        machine.scheduler.abort(str(number))
    assert len(machine.policy._lines._lines) < 200


# ---- the queue by itself


@pytest.mark.parametrize("seed", range(3))
def test_the_queue_is_one_list_sorted_by_number(seed: int, make_request: Make) -> None:
    """The oracle is a list that is sorted each time: Python's sort keeps the order of equal ones."""
    random, queue, model = Random(seed), WaitingQueue(), list[Any]()
    for number in range(300):
        request = make_request(str(number), 1, priority=random.choice([-5, 0, 0, 3]))
        draw = random.random()
        if draw < 0.4:
            queue.put_last(request)
            model.append(request)
        elif draw < 0.6:
            request = random.choice(model) if model and random.random() < 0.5 else request
            queue.put_first(request)
            model = [request, *(each for each in model if each is not request)]
        elif model:
            request = random.choice([*model, request])
            queue.discard(request)
            model = [each for each in model if each is not request]
        model.sort(key=lambda each: each.priority)
        assert list(queue) == model
        by_priority = [(priority, list(requests)) for priority, requests in queue.by_priority()]
        assert all(requests for _, requests in by_priority)
        assert [each for _, requests in by_priority for each in requests] == model
