"""Each wrong input is one clear error: the rule, what was got, a remedy. The scheduler goes on."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError, RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.scheduling.request import Request, RequestState

Make = Callable[..., Any]

WRONG_REQUESTS = [
    ({"prompt": []}, "prompt", "The prompt must hold at least one token, got none"),
    ({"prompt": [1, 100]}, "prompt[1]", r"between 0 and 99 \(the vocabulary has 100\), got 100 at position 1"),
    ({"prompt": [1, 2, -1]}, "prompt[2]", "got -1 at position 2"),
    ({"prompt": [1.5]}, "prompt", "must be whole numbers below 100, got other values"),
    ({"prompt": ["a"]}, "prompt", "must be whole numbers below 100, got other values"),
    ({"prompt": [5, True]}, "prompt", "must be whole numbers below 100, got other values"),
    ({"prompt": [5, 2**70]}, "prompt[1]", "got 1180591620717411303424 at position 1"),
    ({"prompt": [[1], [2]]}, "prompt", "must be whole numbers below 100, got other values"),
    ({"prompt": [[1], [2, 3]]}, "prompt", "must be whole numbers below 100, got other values"),
    ({"prompt": [1] * 128}, "prompt", "has 128 tokens and the model's length is 128.*at most 127 tokens"),
    ({"prompt": 9, "max_tokens": 120}, "max_tokens", r"9 prompt tokens \+ max_tokens=120 = 129 exceed.*of 128.*to 119"),
    ({"prompt": 60, "max_tokens": 22}, "max_tokens", r"- 1 = 81 tokens in the KV cache need 21 pages.*there are 20"),
    (
        {"prompt": 4, "stop_token_ids": (3, 100)},
        "stop_token_ids",
        "stop_token_ids must name ids between 0 and 99.*got 100",
    ),
    ({"prompt": 4, "allowed_token_ids": (101,)}, "allowed_token_ids", "allowed_token_ids must name ids.*got 101"),
    ({"prompt": 4, "logit_bias": {102: 1.0}}, "logit_bias", "logit_bias must name ids.*got 102"),
]


@pytest.mark.parametrize(("options", "param", "message"), WRONG_REQUESTS)
def test_a_request_that_can_never_be_served_is_refused(
    options: dict[str, Any], param: str, message: str, make_request: Make, make_stepper: Make
) -> None:
    stepper = make_stepper(make_request("good", 4, max_tokens=2), num_pages=20)
    with pytest.raises(RequestError, match=message) as caught:
        stepper.scheduler.add(make_request("wrong", **options))
    assert caught.value.param == param
    assert [len(schedule.rows) for schedule in stepper.drain()] == [1, 1]


def test_the_largest_request_that_fits_is_served(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 60, max_tokens=21), num_pages=20)
    assert sum(row.does_sample for schedule in stepper.drain() for row in schedule.rows) == 21


@pytest.mark.parametrize(
    ("max_tokens", "min_tokens", "message"),
    [(0, 0, "max_tokens must be at least 1, got 0"), (3, 4, "min_tokens=4 must be at most the 3 tokens")],
)
def test_resolved_lengths_are_checked(max_tokens: int, min_tokens: int, message: str, make_scheduler: Make) -> None:
    sampling = SamplingParams(max_tokens=None, min_tokens=min_tokens)
    request = Request("a", [1], sampling, arrival_s=0.0, seed=0, max_tokens=max_tokens)
    with pytest.raises(RequestError, match=message):
        make_scheduler().add(request)


@pytest.mark.parametrize("taken", ["a", "b", "b-1"])
def test_an_id_in_use_is_refused(taken: str, make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 4), make_request("b", 4, n=2))
    with pytest.raises(RequestError, match=f"request_id='{taken}' is in use"):
        stepper.scheduler.add(make_request(taken, 4))


def test_an_id_stays_in_use_while_a_sample_of_it_lives(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("b", 4, n=2))
    stepper.scheduler.finish("b", "stop")
    with pytest.raises(RequestError, match="request_id='b' is in use"):
        stepper.scheduler.add(make_request("b", 4))
    stepper.scheduler.finish("b-1", "stop")
    assert len(stepper.scheduler.add(make_request("b", 4))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_budget": 7}, "token_budget=7 must be >= max_num_seqs=8.*Raise token_budget or lower max_num_seqs"),
        ({"num_pages": 0}, "num_pages=0 must be a whole number of at least 1"),
        ({"page_size": 1.5}, "page_size=1.5 must be a whole number"),
        ({"watermark": 1.0}, "watermark=1.0 must be at least 0 and below 1"),
        ({"watermark": float("nan")}, "watermark=nan must be at least 0"),
        ({"max_num_partial_prefills": 0}, "max_num_partial_prefills=0 must be"),
        ({"long_prefill_token_threshold": 0}, "long_prefill_token_threshold=0 must be"),
        ({"preempt_every_steps": 0}, "preempt_every_steps=0 must be"),
    ],
)
def test_wrong_limits_are_refused(options: dict[str, Any], message: str, make_scheduler: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheduler(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"policy": "vllm", "token_budget": 127},
            "token_budget=127 must be >= max_model_len=128 for policy='vllm': .*",
        ),
        ({"policy": "request_level", "token_budget": 127}, "token_budget=127 must be >= max_model_len=128 for .*"),
        (
            {"policy": "orca", "token_budget": 135},
            r"token_budget=135 must be >= max_model_len=128 \+ max_num_seqs=8 = 136 for policy='orca': it never splits a prompt, so one"
            r" step has to hold the longest beside a token of every running request\. ",
        ),
    ],
)
def test_a_budget_that_does_not_hold_the_longest_prompt_is_refused(
    options: dict[str, Any], message: str, make_scheduler: Make
) -> None:
    remedy = "Raise token_budget, lower max_model_len, or choose a policy that splits prompts, such as 'sarathi'"
    with pytest.raises(ConfigError, match=message + remedy):
        make_scheduler(**options)
    make_scheduler(**{**options, "token_budget": options["token_budget"] + 1})


@pytest.mark.parametrize("policy", ["orca", "request_level"])
def test_too_few_pages_for_one_reservation_are_refused(policy: str, make_scheduler: Make) -> None:
    message = (
        f"num_pages=31 must be >= 32 for policy='{policy}': every request reserves the pages of max_model_len=128 tokens, 4 a page."
        " Raise num_pages, lower max_model_len, or choose"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_scheduler(policy=policy, token_budget=136, num_pages=31)
    make_scheduler(policy=policy, token_budget=136, num_pages=32)


def test_an_unknown_policy_lists_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"policy='fifo' is unknown\. Choose one of: .*sarathi"):
        make_policy("fifo")


def test_an_illegal_transition_is_a_fault_of_ours(make_request: Make) -> None:
    request = make_request("a", 4)
    request.enter(RequestState.FINISHED)
    with pytest.raises(AssertionError, match="a: a finished request can't become running"):
        request.enter(RequestState.RUNNING)
