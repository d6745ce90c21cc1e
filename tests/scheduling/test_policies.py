"""What every policy has to keep, whatever it is for. A new policy is tested by being in `POLICIES`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.policy import Plan
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import StepResult
from sarathi_jax.scheduling.scheduler import Scheduler

Make = Callable[..., Any]
TRACES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 15)), min_size=1, max_size=16)
all_policies = pytest.mark.parametrize("policy", sorted(POLICIES))


MakeTrace = Callable[[str, list[tuple[int, int]], int], Scheduler]


@pytest.fixture(scope="module")
def scheduler_with(claims_of: Make) -> MakeTrace:
    return partial(waiting_scheduler, claims_of)


def waiting_scheduler(claims_of: Make, policy: str, trace: list[tuple[int, int]], num_pages: int) -> Scheduler:
    """All requests of a trace are waiting; their prompts share their beginnings."""
    sizes = {"num_pages": num_pages, "page_size": 4, "token_budget": 16, "max_num_seqs": 5, "max_model_len": 64}
    scheduler = Scheduler(policy, **claims_of(policy).sizes(sizes), vocab_size=100)
    for index, (num_prompt_tokens, max_tokens) in enumerate(trace):
        sampling = SamplingParams(max_tokens=max_tokens)
        prompt = list(range(num_prompt_tokens))
        scheduler.add(Request(str(index), prompt, sampling, arrival_s=0.0, seed=0, max_tokens=max_tokens))
    return scheduler


def steps(scheduler: Scheduler) -> list[tuple[Plan, int]]:
    """Run to the end. Returns: each step's plan, with the pages there were."""
    plans: list[tuple[Plan, int]] = []
    while scheduler.has_unfinished:
        plans.append((scheduler.policy.plan(scheduler.view(0.0)), scheduler.num_free_pages))
        schedule = scheduler.schedule(0.0)
        assert schedule is not None, "nothing is in flight, and nothing runs"
        scheduler.complete(schedule, StepResult([1] * len(schedule.rows)), 0.0)
        assert len(plans) < 3_000, "the policy makes no progress"
    return plans


@all_policies
@given(trace=TRACES, num_pages=st.integers(14, 40))
def test_everything_ends_and_no_page_is_lost(
    scheduler_with: MakeTrace, policy: str, trace: list[tuple[int, int]], num_pages: int
) -> None:
    scheduler = scheduler_with(policy, trace, num_pages)
    num_pages = scheduler.limits.num_pages
    requests = [scheduler.get(str(index)) for index in range(len(trace))]
    steps(scheduler)
    outputs = [len(request.output_token_ids) for request in requests if request is not None]
    assert outputs == [max_tokens for _, max_tokens in trace]
    assert scheduler.num_free_pages == num_pages
    scheduler.check_integrity()


@all_policies
@given(trace=TRACES, num_pages=st.integers(14, 40))
def test_plans_keep_their_contract(
    scheduler_with: MakeTrace, policy: str, trace: list[tuple[int, int]], num_pages: int
) -> None:
    scheduler = scheduler_with(policy, trace, num_pages)
    for plan, _ in steps(scheduler):
        requests = [request for request, _ in plan.chunks]
        lengths = [num_tokens for _, num_tokens in plan.chunks]
        assert sum(lengths) <= scheduler.limits.token_budget and min(lengths, default=1) >= 1
        assert len(requests) == len(set(requests)) <= 5
        assert not set(requests) & set(plan.preempted)
        assert set(plan.admitted) <= set(requests)


@all_policies
@given(trace=TRACES, num_pages=st.integers(14, 40))
def test_f26_first_admissions_go_by_arrival(
    claims_of: Make, scheduler_with: MakeTrace, policy: str, trace: list[tuple[int, int]], num_pages: int
) -> None:
    admitted: list[int] = []
    for plan, _ in steps(scheduler_with(policy, trace, num_pages)):
        admitted += [int(request.request_id) for request in plan.admitted if int(request.request_id) not in admitted]
    assert (admitted if claims_of(policy).is_by_arrival else sorted(admitted)) == list(range(len(trace)))


@all_policies
@given(trace=TRACES, num_pages=st.integers(14, 40), num_steps=st.integers(0, 30))
def test_planning_is_pure(
    scheduler_with: MakeTrace, policy: str, trace: list[tuple[int, int]], num_pages: int, num_steps: int
) -> None:
    scheduler = scheduler_with(policy, trace, num_pages)
    for _ in range(num_steps):
        if (schedule := scheduler.schedule(0.0)) is not None:
            scheduler.complete(schedule, StepResult([1] * len(schedule.rows)), 0.0)
    view = scheduler.view(0.0)
    before = [repr(request) for request in (*view.running, *view.waiting)]
    plans = [scheduler.policy.plan(each) for each in (view, view, scheduler.view(0.0))]
    assert plans[0] == plans[1] == plans[2]
    assert before == [repr(request) for request in (*view.running, *view.waiting)]
    scheduler.check_integrity()


# Four requests decode from the second step on; three prompts of 30 tokens arrive after steps 5, 10 and 15. Steps that leave one of the four out, by hand: `vllm` reads each
# prompt in a step of its own; `alternating` in two steps of at most 16 tokens; under `request_level` they wait until the four have ended.
STALLS = {"sarathi": 0, "slo": 0, "orca": 0, "request_level": 0, "vllm": 3, "alternating": 6}


@pytest.mark.parametrize("policy", STALLS)
def test_f10_stalls(policy: str, make_request: Make, make_stepper: Make) -> None:
    sizes = {"token_budget": 16} if policy in ("sarathi", "slo", "alternating") else {"token_budget": 64}
    requests = [make_request(name, 4, max_tokens=40) for name in "abcd"]
    stepper = make_stepper(*requests, policy=policy, max_model_len=48, **sizes)
    num_stalls, late = 0, {5: "x", 10: "y", 15: "z"}
    while stepper.scheduler.has_unfinished:
        decoding = {each.request_id for each in stepper.scheduler.view(0.0).running if not each.is_prefilling}
        schedule, _ = stepper.step()
        num_stalls += not decoding & set("abcd") <= {row.request_id for row in schedule.rows}
        if schedule.step in late:
            stepper.scheduler.add(make_request(late[schedule.step], 30, max_tokens=2, cache_salt=late[schedule.step]))
    assert num_stalls == STALLS[policy]
