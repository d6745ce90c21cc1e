"""LLM with the policy `slo`, on the demo model: goals reach it, it starts from steps that were measured, tokens are those of any policy; classes and clients are checked."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from sarathi_jax import LLM, SamplingParams
from sarathi_jax.errors import RequestError
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.step_times import StepLoad

SMALL: dict[str, Any] = {"token_budget": 32, "max_num_seqs": 2, "max_model_len": 64, "progress": False}
GOALS: dict[str, Any] = {"policy": "slo", "tbt_slo_ms": 1000.0, "batch_tbt_slo_ms": 3000, "fair_clients": True}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with closing(LLM("demo", **SMALL, **GOALS)) as llm:
        yield llm


def test_slo_gives_the_same_tokens_and_starts_from_steps_that_it_measured(llm: LLM) -> None:
    """The policy knows the compiled sizes, and has learned from the steps that were run; nothing is compiled for it after the start."""
    prompts = [list(range(40, 40 + length)) for length in (50, 3, 37, 9)]
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    with closing(LLM("demo", **SMALL)) as other:
        wanted = [each.outputs[0].token_ids for each in other.generate(prompts, params)]
    policy = llm.engines[0].scheduler.policy
    assert isinstance(policy, SloPolicy)
    assert policy.levels["interactive"].tbt_slo_s == 1.0 and policy.levels["batch"].tbt_slo_s == 3.0
    before = policy.times.seconds(StepLoad(2, 2, 2, 20, 0.0))
    assert 0 < before < 1
    got = llm.generate(prompts, params, slo_class="batch", client="somebody")
    assert [each.outputs[0].token_ids for each in got] == wanted
    assert policy.times.seconds(StepLoad(2, 2, 2, 20, 0.0)) != before
    assert llm.compile_ledger.num_after_ready == 0


def test_lower_priorities_are_let_in_first(llm: LLM) -> None:
    """Two run at a time. All samples say the same, whatever their priority."""
    prompts, params = [[50, 51]] * 6, SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    outputs = llm.generate(prompts, params, priority=[2, 1, 0, 2, 1, 0])
    delays_s = [each.metrics.scheduling_delay_s or 0.0 for each in outputs]
    places = sorted(range(6), key=lambda place: outputs[place].metrics.arrival_s + delays_s[place])
    assert [set(places[:2]), set(places[2:4]), set(places[4:])] == [{2, 5}, {1, 4}, {0, 3}]
    assert len({tuple(each.outputs[0].token_ids) for each in outputs}) == 1
    low, high = (llm.stream([50, 51], params, priority=priority) for priority in (1, -1))
    assert [len(list(stream)) for stream in (high, low)] == [3, 3]


def test_priorities_are_one_for_all_or_one_each(llm: LLM) -> None:
    with pytest.raises(RequestError, match="priority must be one for all prompts or one each, got 3 for 2: pass 2"):
        llm.generate([[2, 3]] * 2, priority=[1, 2, 3])


@pytest.mark.parametrize(
    ("facts", "message", "param"),
    [
        ({"slo_class": "urgent"}, "slo_class must be one of interactive, batch, got 'urgent': choose one", "slo_class"),
        ({"slo_class": None}, "slo_class must be one of interactive, batch, got None", "slo_class"),
        ({"client": 7}, "client must be a text, got 7: pass who asks", "client"),
        ({"priority": 1.5}, "priority must be a whole number between .*, got 1.5", "priority"),
        ({"priority": "high"}, "priority must be a whole number between .*, got 'high'", "priority"),
        ({"priority": 2**70}, "priority must be a whole number between .*, got one of 71 bits", "priority"),
    ],
)
def test_wrong_classes_and_clients_are_refused(llm: LLM, facts: dict[str, Any], message: str, param: str):
    with pytest.raises(RequestError, match=message) as caught:
        llm.generate([[2, 3]], **facts)
    assert caught.value.param == param
    with pytest.raises(RequestError, match=message):
        llm.stream([2, 3], **facts)
