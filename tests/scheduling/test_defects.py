"""Defects of the public implementation of Sarathi-Serve that must not be ours, each by the number it has in the project's reference.

Number 6, budgets that are padded to a multiple of 8 only, is the buckets' affair.
"""

from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies import POLICIES, make_policy
from sarathi_jax.scheduling.policy import View

Make = Callable[..., Any]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_defect_1_more_decodes_than_budget_give_no_negative_chunk(
    policy: str, make_request: Make, make_stepper: Make
) -> None:
    # No scheduler can have such limits; the policy by itself has to stay within them too.
    stepper = make_stepper(*[make_request(str(index), 2) for index in range(6)], make_request("long", [9] * 50))
    stepper.step()
    view = stepper.scheduler.view(0.0)
    limits = SchedulerLimits(num_pages=64, max_model_len=128, vocab_size=100, token_budget=4, max_num_seqs=4)
    plan = make_policy(policy).plan(View(0.0, limits, view.running, view.waiting, stepper.scheduler.kv_pages))
    # It is the prompt's turn under `alternating`.
    assert [num_tokens for _, num_tokens in plan.chunks] == ([4] if policy == "alternating" else [1, 1, 1, 1])


def test_defect_1_such_a_budget_is_refused(make_scheduler: Make) -> None:
    with pytest.raises(ConfigError, match="token_budget=5 must be >= max_num_seqs=6"):
        make_scheduler(token_budget=5, max_num_seqs=6)


# A budget and pages that every policy can work with.
AMPLE = {"token_budget": 64, "max_model_len": 48}


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_defect_2_a_preempted_request_generates_no_more_than_asked(
    every: int, policy: str, make_request: Make, make_stepper: Make
) -> None:
    request = make_request("a", 5, max_tokens=9)
    stepper = make_stepper(request, policy=policy, preempt_every_steps=every, **AMPLE)
    stepper.drain()
    assert request.num_preemptions > 0
    assert (len(request.output_token_ids), request.prompt_token_ids) == (9, [1, 2, 3, 4, 5])


def test_defect_3_a_partial_prefill_can_be_the_victim(make_request: Make, make_stepper: Make) -> None:
    # "old" decodes into its second page while "young" still reads and holds the rest of the pool.
    options = {"num_pages": 11, "watermark": 0.0, "is_prefix_caching": False, "token_budget": 8}
    stepper = make_stepper(make_request("old", 4), make_request("young", 40, max_tokens=1), **options)
    stepper.step()
    schedule, _ = stepper.step()
    assert schedule.preempted_request_ids == ("young",)
    assert [row.request_id for row in schedule.rows] == ["old"]


def test_defect_3_the_asking_decode_goes_if_it_is_the_youngest(make_request: Make, make_stepper: Make) -> None:
    # "old" is a partial prefill that holds nearly everything; the younger "asks" may not take from it.
    options = {"num_pages": 11, "watermark": 0.0, "is_prefix_caching": False, "long_prefill_token_threshold": 4}
    stepper = make_stepper(make_request("old", 40, max_tokens=1), make_request("asks", 4), **options)
    stepper.step()
    schedule, _ = stepper.step()
    assert schedule.preempted_request_ids == ("asks",)
    assert [(row.request_id, row.num_tokens) for row in schedule.rows] == [("old", 4)]


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(("is_blocking", "expected"), [(True, {"a"}), (False, {"a", "small"})])
def test_defect_4_blocking_by_the_head_can_be_switched_off(
    is_blocking: bool, expected: set[str], policy: str, make_request: Make, make_stepper: Make
) -> None:
    """60 tokens are asked of a step; after "a" and "big" there are not so many, and where prompts may be split no pages either."""
    prompts = {"a": 20, "big": [9] * 40, "small": [8] * 2}
    requests = [make_request(name, prompt, arrival_s=float(at)) for at, (name, prompt) in enumerate(prompts.items())]
    num_pages = 14 if policy in ("sarathi", "slo", "alternating") else 64
    options = {**AMPLE, "token_budget": 56, "num_pages": num_pages, "is_head_of_line_blocking": is_blocking}
    assert {row.request_id for row in make_stepper(*requests, policy=policy, **options).step()[0].rows} == expected


def test_defect_5_how_much_waits_is_known_so_that_it_can_be_bounded(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(*[make_request(str(index), 4, n=2) for index in range(20)], max_num_seqs=2)
    assert stepper.scheduler.num_waiting == 40
    stepper.step()
    assert stepper.scheduler.num_waiting == 38
