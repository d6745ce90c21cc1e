"""Log-probabilities as they come: each event's joined are the output's, and the prompt's stand whole in the first event that has a token."""

from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.sampling_params import SamplingParams

PROMPT = [*range(1, 41)]  # three steps' worth
type MakeRig = Callable[..., Any]


def params(**options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=6, seed=1, **options)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("options", [{}, {"preempt_every_steps": 2}])
def test_events_joined_are_the_output(make_rig: MakeRig, overlap: bool, n: int, options: dict[str, Any]):
    rig = make_rig(overlap=overlap, **options)
    rig.engine.add_request(PROMPT, params(n=n, logprobs=1, prompt_logprobs=0), request_id="asked")
    rig.engine.add_request(PROMPT[::-1], params(), request_id="not")
    events = rig.drain()
    [output] = [event.output for event in events if event.output and event.request_id == "asked"]
    asked = [event for event in events if event.request_id == "asked"]
    for sample in output.outputs:
        mine = [event for event in asked if event.sample_index == sample.index]
        assert [event.logprobs for event in mine] == sample.logprobs
        assert [event.logprobs.top[0][0] for event in mine] == sample.token_ids
    assert [-1.0 * place for place in range(1, len(PROMPT))] == [each.logprob for each in output.prompt_logprobs[1:]]
    assert [place for place, event in enumerate(asked) if event.prompt_logprobs is not None] == [0]
    assert (asked[0].sample_index, asked[0].prompt_logprobs) == (0, output.prompt_logprobs)
    others = [event for event in events if event.request_id == "not"]
    assert all(event.logprobs is None and event.prompt_logprobs is None for event in others)


def test_a_single_token_has_both(make_rig: MakeRig):
    """The event that ends the request is the first one too."""
    rig = make_rig()
    rig.engine.add_request([1, 2], SamplingParams(max_tokens=1, logprobs=0, prompt_logprobs=0))
    [event] = rig.drain()
    assert event.output.outputs[0].logprobs == [event.logprobs]
    assert event.output.prompt_logprobs == event.prompt_logprobs
    assert len(event.prompt_logprobs) == 2


def test_a_request_that_fails_or_is_aborted_has_none(make_rig: MakeRig):
    rig = make_rig()
    rig.executor.bad_requests = {"bad"}
    rig.engine.add_request([1, 2], params(logprobs=0, prompt_logprobs=0), request_id="bad")
    [event] = rig.drain()
    assert (event.finish_reason, event.logprobs, event.prompt_logprobs) == ("error", None, None)
    rig.engine.add_request(PROMPT, params(logprobs=0, prompt_logprobs=0), request_id="aborted")
    rig.engine.step()
    [event] = rig.engine.abort("aborted")
    assert (event.finish_reason, event.logprobs, event.prompt_logprobs) == ("abort", None, None)
