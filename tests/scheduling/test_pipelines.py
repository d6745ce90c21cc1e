"""F22: schedules for a pipeline. At most as many steps under way as stages, a request in at most one but for the chunks of a prompt where a policy chains them,
decodes dealt out evenly, and nobody left behind."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler

TRACES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 15)), min_size=1, max_size=12)


class Line:
    """Runs a scheduler as a pipeline's loop does: as many steps under way as stages, the oldest taken in when there is one more or nothing to start."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.under_way: deque[Schedule] = deque()

    def turn(self) -> Schedule | None:
        schedule = self.scheduler.schedule(0.0)
        if schedule is not None:
            self.under_way.append(schedule)
        if schedule is None or len(self.under_way) > self.scheduler.limits.num_microbatches:
            oldest = self.under_way.popleft()
            self.scheduler.complete(oldest, StepResult([7] * len(oldest.rows)), 0.0)
        self.scheduler.check_integrity()
        return schedule

    def drain(self) -> list[Schedule]:
        schedules: list[Schedule] = []
        for _ in range(5_000):
            if not self.scheduler.has_unfinished:
                break
            if (schedule := self.turn()) is not None:
                schedules.append(schedule)
        assert not self.scheduler.has_unfinished, "the scheduler makes no progress"
        return schedules


def names(schedule: Schedule | None) -> str:
    return "" if schedule is None else "".join(row.request_id for row in schedule.rows)


def line_of(make_scheduler: Callable[..., Any], make_request: Callable[..., Any], prompts: str, **options: Any) -> Line:
    """Requests with prompts of one token, which are decodes from their second step on."""
    line = Line(make_scheduler(**options))
    for name in prompts:
        line.scheduler.add(make_request(name, 1, max_tokens=6, ignore_eos=True))
    return line


def test_f22_five_decodes_alternate_between_two_microbatches(make_scheduler: Any, make_request: Any) -> None:
    line = line_of(make_scheduler, make_request, "abcde", num_microbatches=2)
    assert [names(line.turn()) for _ in range(7)] == ["abcde", "", "abc", "de", "abc", "de", "abc"]


def test_f22_four_stages_have_a_decode_each(make_scheduler: Any, make_request: Any) -> None:
    line = line_of(make_scheduler, make_request, "abcd", num_microbatches=4)
    assert [names(line.turn()) for _ in range(10)] == ["abcd", "", "a", "b", "c", "d", "a", "b", "c", "d"]


def test_f22_a_prompts_next_chunk_waits_until_the_last_one_has_left(make_scheduler: Any, make_request: Any) -> None:
    line = Line(make_scheduler(num_microbatches=2, token_budget=16))
    line.scheduler.add(make_request("a", 40))
    line.scheduler.add(make_request("b", 12))
    chunks = [[(row.request_id, row.num_tokens) for row in each.rows] for each in line.drain()[:4]]
    assert chunks == [[("a", 16)], [("b", 12)], [("a", 16)], [("b", 1)]]


def test_f22_one_stage_has_no_share_to_keep(make_scheduler: Any, make_request: Any) -> None:
    line = line_of(make_scheduler, make_request, "abcde")
    assert [names(line.turn()) for _ in range(3)] == ["abcde"] * 3


def test_a_forced_preemption_comes_once_however_often_its_step_is_asked_for(
    make_scheduler: Any, make_request: Any
) -> None:
    """A loop that polls asks again and again while all requests are under way."""
    line = line_of(make_scheduler, make_request, "abc", num_microbatches=4, preempt_every_steps=2)
    requests = [line.scheduler.get(name) for name in "abc"]
    assert names(line.turn()) == "abc"
    assert [line.scheduler.schedule(0.0) for _ in range(3)] == [None] * 3
    assert [request.num_preemptions for request in requests if request] == [0, 0, 1]


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(trace=TRACES, num_pages=st.integers(14, 40), num_stages=st.integers(2, 4))
def test_f22_every_policy_keeps_the_contract_of_pipelines(
    claims_of: Callable[..., Any], policy: str, trace: list[tuple[int, int]], num_pages: int, num_stages: int
) -> None:
    sizes = {"num_pages": num_pages, "page_size": 4, "token_budget": 16, "max_num_seqs": 5, "max_model_len": 64}
    scheduler = Scheduler(policy, **claims_of(policy).sizes(sizes), vocab_size=100, num_microbatches=num_stages)
    requests = []
    for index, (num_prompt_tokens, max_tokens) in enumerate(trace):
        sampling, prompt = SamplingParams(max_tokens=max_tokens), list(range(num_prompt_tokens))
        requests.append(Request(str(index), prompt, sampling, arrival_s=0.0, seed=0, max_tokens=max_tokens))
        scheduler.add(requests[-1])
    line, does_chain = Line(scheduler), claims_of(policy).does_chain
    while scheduler.has_unfinished:
        view = scheduler.view(0.0)
        plan = scheduler.policy.plan(view)
        again = {request for request, _ in plan.chunks} & view.under_way
        assert not again or (does_chain and all(request.is_prefilling for request in again))
        assert len(plan.admitted) <= view.num_free_slots
        line.turn()
        assert len(line.under_way) <= num_stages
    while line.under_way:
        line.turn()
    assert [len(request.output_token_ids) for request in requests] == [max_tokens for _, max_tokens in trace]
    assert scheduler.num_free_pages == scheduler.limits.num_pages
