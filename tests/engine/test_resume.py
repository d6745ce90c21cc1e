"""Requests that go on after output they had elsewhere: the rest is, token for token, what the undisturbed run gives, at every split point.

The oracle is the undisturbed run, in an engine of its own. The fake device's tokens here depend on where the prompt ends and on how much output there was too, as
penalties and a minimum length make them on a real one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.text.tokenizer import Tokenizer

PROMPT = [*b"a prompt of some length"]
type MakeRig = Callable[..., Any]


def params(max_tokens: int | None = 12, **options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "seed": 1, **options})


def strict(rig: Any) -> Any:
    """A device whose tokens depend on what counts as prompt and as output."""
    run_row = rig.executor._run_row

    def run(row: Any) -> int:
        return run_row(row._replace(seed=(row.seed, row.num_prompt_tokens, row.num_output_tokens).__hash__() % 2**62))

    rig.executor._run_row = run
    return rig


def go_on(rig: Any, prompt: Any, given_ids: Sequence[int], options: SamplingParams, **more: Any) -> list[Any]:
    """Events of a request with these tokens behind it, to its end, beside another one."""
    rig.engine.add_request([9] * 21, params(30), request_id="beside")
    rig.engine.add_request(prompt, options, request_id="on", output_token_ids=given_ids, **more)
    events = [event for event in rig.drain() if event.request_id == "on"]
    assert rig.engine.scheduler.num_free_pages == rig.engine.scheduler.limits.num_pages
    return events


OPTIONS = [{}, {"preempt_every_steps": 3}, {"num_pages": 32}, {"token_budget": 4}, {"is_prefix_caching": False}]
KINDS = [{}, {"stop": ("a", "xy")}, {"stop_token_ids": (*range(97, 104),)}, {"logprobs": 1, "prompt_logprobs": 0}]
KINDS += [{"stop": ("b",), "include_stop_str_in_output": True, "min_tokens": 3}, {"max_tokens": None}]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_rest_is_what_the_undisturbed_run_gives(make_rig: MakeRig, tokenizer: Tokenizer, data: Any):
    prompt = [*data.draw(st.binary(min_size=1, max_size=40).filter(lambda each: max(each) < 128))]
    options: dict[str, Any] = {"max_tokens": data.draw(st.integers(4, 30)), **data.draw(st.sampled_from(KINDS))}
    asked = params(**options, seed=data.draw(st.integers(0, 2**62)))
    whole = go_on(strict(make_rig(tokenizer=tokenizer)), prompt, (), asked)
    tokens, output = [token for event in whole for token in event.token_ids], whole[-1].output
    split = data.draw(st.integers(1, max(len(tokens) - 1, 1)))
    if split >= len(tokens):
        return
    overlap, limits = data.draw(st.booleans()), data.draw(st.sampled_from(OPTIONS))
    rig = strict(make_rig(tokenizer=tokenizer, overlap=overlap, **limits))
    rest = go_on(rig, prompt, tokens[:split], asked)
    rests = [(event.text_delta, event.token_ids, event.finish_reason, event.logprobs) for event in rest]
    assert rests == [
        (event.text_delta, event.token_ids, event.finish_reason, event.logprobs) for event in whole[split:]
    ]
    found, [sample], [before] = rest[-1].output, rest[-1].output.outputs, output.outputs
    assert (sample.token_ids, sample.text, sample.stop_reason) == (before.token_ids, before.text, before.stop_reason)
    assert (found.prompt_token_ids, found.prompt_logprobs) == (prompt, output.prompt_logprobs)
    assert (sample.logprobs or []) == (before.logprobs or [])[split:]
    assert len(sample.metrics.tbt_s) == len(tokens) - split - 1


def test_it_can_go_on_again_and_again(make_rig: MakeRig, tokenizer: Tokenizer):
    """An engine that dies after every token."""
    whole = go_on(strict(make_rig(tokenizer=tokenizer)), "hello", (), params())[-1].output.outputs[0]
    tokens: list[int] = []
    text = ""
    while len(tokens) < 12:
        rig = strict(make_rig(tokenizer=tokenizer))
        rig.engine.add_request("hello", params(), output_token_ids=tokens)
        event = next(event for _ in range(9) for event in rig.engine.step())
        tokens, text = tokens + event.token_ids, text + event.text_delta
    assert (tokens, text) == (whole.token_ids, whole.text)


def test_replicas_pass_it_on(make_rig: MakeRig):
    from sarathi_jax.engine.replicas import EngineReplicas

    whole = go_on(strict(make_rig()), PROMPT, (), params())[-1].output.outputs[0]
    replicas = EngineReplicas([strict(make_rig(step_s=0.0)).engine for _ in range(2)])
    replicas.add_request(PROMPT, params(), output_token_ids=whole.token_ids[:5])
    events: list[Any] = []
    while replicas.has_unfinished:
        events += replicas.step()
    assert events[-1].output.outputs[0].token_ids == whole.token_ids
    with pytest.raises(RequestError, match="only with the seed that it had"):
        replicas.add_request(PROMPT, params(seed=None), output_token_ids=[5])


@pytest.mark.parametrize(
    ("given_ids", "options", "param", "message"),
    [
        ([97], {"n": 2}, "n", "Only one sample can go on after output_token_ids, got n=2"),
        ([97], {"seed": None}, "seed", "only with the seed that it had, got none"),
        ([97] * 12, {}, "output_token_ids", "must leave some of max_tokens=12, which counts them, got 12"),
        ([97, 98, 99], {"stop_token_ids": (98,)}, "output_token_ids", "no token that ends the output, got 98"),
        ([97, 98, 99], {"stop": ("bc",)}, "output_token_ids", "no stop string, got 'bc'"),
        ([97, 256], {}, "output_token_ids[1]", "Output token ids must be between 0 and 255 .* got 256 at position 1"),
        ([97, -1], {"stop": ("b",)}, "output_token_ids[1]", "Output token ids must be between 0 and 255 .* got -1"),
        ([97, "b"], {}, "output_token_ids", "Output token ids must be whole numbers"),
        ([97, True], {}, "output_token_ids", "Output token ids must be whole numbers"),
    ],
    ids=str,
)
def test_what_can_not_go_on_is_refused(
    make_rig: MakeRig, tokenizer: Tokenizer, given_ids: list[Any], options: dict[str, Any], param: str, message: str
):
    rig = make_rig(tokenizer=tokenizer)
    with pytest.raises(RequestError, match=message) as caught:
        rig.engine.add_request(PROMPT, params(**options), request_id="mine", output_token_ids=given_ids)
    assert caught.value.param == param
    assert not rig.engine.has_unfinished
    rig.engine.add_request(PROMPT, params(), request_id="mine")  # nothing is left of it


def test_a_stop_token_among_the_first_min_tokens_has_ended_nothing(make_rig: MakeRig):
    rig = make_rig()
    rig.engine.add_request(PROMPT, params(stop_token_ids=(1,), min_tokens=2), output_token_ids=[1, 1, 5])
    assert rig.outputs()["request-0"].outputs[0].token_ids[:3] == [1, 1, 5]


def test_a_greedy_request_needs_no_seed(make_rig: MakeRig):
    make_rig().engine.add_request(PROMPT, params(seed=None, temperature=0.0), output_token_ids=[5])
