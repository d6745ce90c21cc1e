"""The engine over a device without jax: outputs, text and stop strings, samples, aborts at every moment, metrics, wrong inputs."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.text.tokenizer import Tokenizer

PROMPT = [1, 2, 3, 4, 5, 6, 7]
type MakeRig = Callable[..., Any]
type Expected = Callable[..., list[int]]


def params(max_tokens: int | None = 8, **options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "seed": 1, **options})


def text_of(token_ids: list[int]) -> str:
    return bytes(token_ids).decode()


def test_an_output_holds_all_there_is(make_rig: MakeRig, expected_tokens: Expected):
    rig = make_rig()
    assert rig.engine.add_request(PROMPT, params(), request_id="mine") == "mine"
    output = rig.outputs()["mine"]
    [sample] = output.outputs
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("mine", None, PROMPT)
    assert sample.token_ids == expected_tokens(PROMPT, 1, 8)
    assert (sample.index, sample.finish_reason, sample.stop_reason, sample.logprobs) == (0, "length", None, None)
    assert (sample.text, output.prompt_logprobs) == ("", None)


@pytest.mark.parametrize("overlap", [True, False])
def test_events_joined_are_the_output(make_rig: MakeRig, tokenizer: Tokenizer, overlap: bool):
    rig = make_rig(overlap=overlap, tokenizer=tokenizer)
    rig.engine.add_request("hello", params(12))
    events = rig.drain()
    sample = events[-1].output.outputs[0]
    assert [token for event in events for token in event.token_ids] == sample.token_ids
    assert "".join(event.text_delta for event in events) == sample.text == text_of(sample.token_ids)
    assert [event.finish_reason for event in events] == [None] * 11 + ["length"]
    assert all(event.output is None for event in events[:-1])


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("place", [0, 1, 5, 17])
@pytest.mark.parametrize("keeps_stop", [True, False])
def test_a_stop_string_ends_the_output(
    make_rig: MakeRig, tokenizer: Tokenizer, expected_tokens: Expected, overlap: bool, place: int, keeps_stop: bool
):
    """In the overlapped loop a step more is in flight by then: its token is dropped, and all pages come back."""
    prompt = list(b"hello")
    text = text_of(expected_tokens(prompt, 1, 20))
    stop = text[place : place + 3]
    assert text.find(stop) == place
    rig = make_rig(overlap=overlap, tokenizer=tokenizer)
    rig.engine.add_request("hello", params(40, stop=("zzz", stop), include_stop_str_in_output=keeps_stop))
    events = rig.drain()
    sample = events[-1].output.outputs[0]
    assert sample.text == text[: place + 3 * keeps_stop] == "".join(event.text_delta for event in events)
    assert (sample.finish_reason, sample.stop_reason, len(sample.token_ids)) == ("stop", stop, place + 3)
    assert rig.engine.scheduler.num_free_pages == rig.engine.scheduler.limits.num_pages


def test_a_stop_string_can_be_completed_by_the_last_token_there_may_be(
    make_rig: MakeRig, tokenizer: Tokenizer, expected_tokens: Expected
):
    text = text_of(expected_tokens(list(b"hello"), 1, 6))
    rig = make_rig(tokenizer=tokenizer)
    rig.engine.add_request("hello", params(6, stop=(text[3:6],)))
    sample = rig.outputs()["request-0"].outputs[0]
    assert (sample.text, sample.finish_reason, sample.stop_reason) == (text[:3], "stop", text[3:6])


@pytest.mark.parametrize("overlap", [True, False])
def test_a_stop_id_ends_the_output_and_is_named(make_rig: MakeRig, expected_tokens: Expected, overlap: bool):
    tokens = expected_tokens(PROMPT, 1, 20)
    rig = make_rig(overlap=overlap)
    rig.engine.add_request(PROMPT, params(40, stop_token_ids=(tokens[6], 255)))
    sample = rig.outputs()["request-0"].outputs[0]
    count = tokens.index(tokens[6]) + 1
    assert (sample.token_ids, sample.finish_reason, sample.stop_reason) == (tokens[:count], "stop", tokens[6])


def test_a_stop_id_is_not_part_of_the_text(make_rig: MakeRig, tokenizer: Tokenizer, expected_tokens: Expected):
    tokens = expected_tokens(list(b"hello"), 1, 20)
    rig = make_rig(tokenizer=tokenizer)
    rig.engine.add_request("hello", params(40, stop_token_ids=(tokens[6],)))
    sample = rig.outputs()["request-0"].outputs[0]
    assert sample.token_ids[-1] == tokens[6]
    assert sample.text == text_of(sample.token_ids[:-1])


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_samples_have_seeds_of_their_own_and_end_apart(
    make_rig: MakeRig, expected_tokens: Expected, overlap: bool, prefix: bool
):
    tokens = [expected_tokens(PROMPT, 1 + index, 8) for index in range(3)]
    rig = make_rig(overlap=overlap, is_prefix_caching=prefix)
    rig.engine.add_request(PROMPT, params(8, n=3, stop_token_ids=(tokens[1][2],), logprobs=1))
    events = rig.drain()
    samples = events[-1].output.outputs
    assert [sample.index for sample in samples] == [0, 1, 2]
    cut = [each[: each.index(tokens[1][2]) + 1] if tokens[1][2] in each else each for each in tokens]
    assert [sample.token_ids for sample in samples] == cut
    assert [len(sample.logprobs) for sample in samples] == [len(each) for each in cut]
    for index in range(3):
        mine = [event for event in events if event.sample_index == index]
        assert [token for event in mine for token in event.token_ids] == cut[index]
        assert [event.finish_reason is None for event in mine] == [True] * (len(mine) - 1) + [False]
    assert sum(event.output is not None for event in events) == 1


def test_requests_without_a_seed_draw_from_the_engines(make_rig: MakeRig):
    outputs = []
    for _ in range(2):
        rig = make_rig()
        for _ in range(2):
            rig.engine.add_request(PROMPT, SamplingParams(max_tokens=8))
        outputs.append([each.outputs[0].token_ids for each in rig.outputs().values()])
    assert outputs[0] == outputs[1]
    assert outputs[0][0] != outputs[0][1]


def test_no_limit_means_up_to_the_models_length(make_rig: MakeRig):
    rig = make_rig()
    rig.engine.add_request(PROMPT, params(None))
    sample = rig.outputs()["request-0"].outputs[0]
    assert (len(sample.token_ids), sample.finish_reason) == (128 - len(PROMPT), "length")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.booleans(), st.integers(1, 3))
def test_aborts_at_any_moment_free_everything_and_change_no_other(
    make_rig: MakeRig, expected_tokens: Expected, data: st.DataObject, overlap: bool, n: int
):
    rig = make_rig(overlap=overlap, num_pages=36)
    sizes = {f"r{i}": 3 + 11 * i for i in range(5)}
    for name, size in sizes.items():
        rig.engine.add_request(list(range(1, size)), params(9, n=n), request_id=name)
    moments = data.draw(st.dictionaries(st.integers(0, 25), st.sampled_from(sorted(sizes)), max_size=4))
    events: list[Any] = []
    for turn in range(200):
        if turn > 25 and not rig.engine.has_unfinished:
            break
        events += rig.engine.abort(moments[turn]) if turn in moments else []
        events += rig.engine.step()
        rig.engine.scheduler.check_integrity()
    assert not rig.engine.has_unfinished
    assert rig.engine.scheduler.num_free_pages == 36
    outputs = {event.request_id: event.output for event in events if event.output is not None}
    assert set(outputs) == set(sizes), "every request ends once, aborted or not"
    for name, size in sizes.items():
        for index, sample in enumerate(outputs[name].outputs):
            whole = expected_tokens(list(range(1, size)), 1 + index, 9)
            is_whole = sample.finish_reason == "length"
            assert sample.token_ids == (whole if is_whole else whole[: len(sample.token_ids)])
            assert is_whole or (sample.finish_reason == "abort" and name in moments.values())
            mine = [event for event in events if (event.request_id, event.sample_index) == (name, index)]
            assert [token for event in mine for token in event.token_ids] == sample.token_ids
            assert [event.finish_reason is not None for event in mine] == [False] * (len(mine) - 1) + [True]


def test_aborting_again_or_what_never_was_is_nothing(make_rig: MakeRig):
    rig = make_rig()
    rig.engine.add_request(PROMPT, params(), request_id="a")
    assert len(rig.engine.abort("a")) == 1
    assert rig.engine.abort("a") == rig.engine.abort("b") == rig.drain() == []


def test_an_abort_gives_the_text_that_was_held_back(make_rig: MakeRig, tokenizer: Tokenizer, expected_tokens: Expected):
    text = text_of(expected_tokens(list(b"hello"), 1, 4))
    rig = make_rig(overlap=False, tokenizer=tokenizer)
    rig.engine.add_request("hello", params(40, stop=(text[2:4] + "!",)), request_id="a")
    deltas = [rig.engine.step()[0].text_delta for _ in range(4)]
    [last] = rig.engine.abort("a")
    assert "".join(deltas) == text[:2]
    assert (last.text_delta, last.finish_reason, last.output.outputs[0].text) == (text[2:], "abort", text)


def test_the_id_of_one_sample_is_no_request(make_rig: MakeRig):
    """Only whole requests are aborted: a sample that ended behind the engine's back would be waited for forever."""
    rig = make_rig()
    rig.engine.add_request(PROMPT, params(4, n=2), request_id="a")
    assert rig.engine.abort("a-1") == []
    assert [sample.finish_reason for sample in rig.outputs()["a"].outputs] == ["length", "length"]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_request_whose_logits_break_ends_alone(make_rig: MakeRig, expected_tokens: Expected, overlap: bool):
    rig = make_rig(overlap=overlap)
    rig.executor.bad_requests = {"bad"}
    for name in ("good", "bad", "fine"):
        rig.engine.add_request(PROMPT, params(), request_id=name)
    outputs = {name: output.outputs[0] for name, output in rig.outputs().items()}
    assert (outputs["bad"].finish_reason, outputs["bad"].token_ids) == ("error", [])
    for name in ("good", "fine"):
        assert (outputs[name].finish_reason, outputs[name].token_ids) == ("length", expected_tokens(PROMPT, 1, 8))


def test_metrics_of_a_request_that_waits_reads_and_decodes(make_rig: MakeRig):
    """Steps of 2 s, 16 tokens each. "b" arrives at 1 s, waits for the one batch slot until "a" is done at 8 s, and reads 20 tokens in two steps."""
    rig = make_rig(overlap=False, step_s=2.0, max_num_seqs=1)
    rig.engine.add_request(PROMPT, params(4), request_id="a", arrival_s=0.0)
    rig.engine.add_request(list(range(20)), params(3), request_id="b", arrival_s=1.0)
    outputs = rig.outputs()
    first, second = outputs["a"].metrics, outputs["b"].metrics
    assert (first.arrival_s, first.scheduling_delay_s, first.ttft_s, first.e2e_s) == (0.0, 0.0, 2.0, 8.0)
    assert first.tbt_s == [2.0, 2.0, 2.0]
    assert (second.arrival_s, second.scheduling_delay_s, second.ttft_s, second.e2e_s) == (1.0, 7.0, 11.0, 15.0)
    assert second.tbt_s == [2.0, 2.0]


def test_metrics_of_the_overlapped_loop_count_when_tokens_came(make_rig: MakeRig):
    rig = make_rig(overlap=True, step_s=2.0)
    rig.engine.add_request(PROMPT, params(4))
    metrics = rig.outputs()["request-0"].metrics
    assert (metrics.ttft_s, metrics.tbt_s, metrics.e2e_s) == (2.0, [2.0, 2.0, 2.0], 8.0)


def test_metrics_of_a_request_that_never_ran(make_rig: MakeRig):
    rig = make_rig()
    rig.engine.add_request(PROMPT, params(), request_id="a", arrival_s=0.0)
    rig.clock.advance(3.0)
    metrics = rig.engine.abort("a")[0].output.metrics
    assert (metrics.scheduling_delay_s, metrics.ttft_s, metrics.tbt_s, metrics.e2e_s) == (None, None, [], 3.0)


def test_prefix_hits_are_counted_and_salts_keep_requests_apart(make_rig: MakeRig):
    rig, hits = make_rig(overlap=False), []
    for salt in ("", "", "x", "x", ""):
        name = rig.engine.add_request(list(range(22)), params(2), cache_salt=salt)
        hits.append(rig.outputs()[name].metrics.num_prefix_hit_tokens)
    assert hits == [0, 20, 0, 20, 20]


WRONG = [
    ([], {}, "prompt", "The prompt must hold at least one token, got none"),
    ([1, 256], {}, "prompt[1]", "between 0 and 255 .*got 256 at position 1"),
    ([-1], {}, "prompt[0]", "got -1 at position 0"),
    ([1.5], {}, "prompt", "whole numbers below 256"),
    ([True], {}, "prompt", "whole numbers below 256"),
    (5, {}, "prompt", "must be a text or a list of token ids, got int"),
    (None, {}, "prompt", "must be a text or a list of token ids, got NoneType"),
    ("text", {}, "prompt", "needs a tokenizer, got a model without one: pass token ids"),
    ([1] * 128, {}, "prompt", "has 128 tokens and the model's length is 128"),
    ([1] * 125, {"max_tokens": 4}, "max_tokens", r"125 prompt tokens \+ max_tokens=4 = 129 exceed"),
    ([1], {"stop": ("x",)}, "stop", "stop needs a tokenizer"),
    ([1], {"logit_bias": {256: 1.0}}, "logit_bias", "between 0 and 255 .*got 256"),
    ([1], {"allowed_token_ids": (3, 300)}, "allowed_token_ids", "got 300"),
    ([1], {"stop_token_ids": (999,)}, "stop_token_ids", "got 999"),
]


@pytest.mark.parametrize(("prompt", "options", "param", "message"), WRONG)
def test_a_wrong_request_is_one_clear_error_and_others_go_on(
    make_rig: MakeRig, expected_tokens: Expected, prompt: Any, options: dict[str, Any], param: str, message: str
):
    rig = make_rig()
    rig.engine.add_request(PROMPT, params(), request_id="good")
    rig.engine.step()
    with pytest.raises(RequestError, match=message) as caught:
        rig.engine.add_request(prompt, params(**options))
    assert caught.value.param == param
    outputs = rig.outputs()
    assert list(outputs) == ["good"]
    assert outputs["good"].outputs[0].token_ids == expected_tokens(PROMPT, 1, 8)


def test_an_id_in_use_is_refused_and_harms_nobody(make_rig: MakeRig, expected_tokens: Expected):
    rig = make_rig()
    rig.engine.add_request(PROMPT, params(), request_id="a")
    with pytest.raises(RequestError, match="request_id='a' is in use"):
        rig.engine.add_request([9], params(), request_id="a")
    assert rig.outputs()["a"].outputs[0].token_ids == expected_tokens(PROMPT, 1, 8)
    rig.engine.add_request([9], params(), request_id="a")
    assert rig.outputs()["a"].prompt_token_ids == [9]


def test_closing_aborts_and_releases(make_rig: MakeRig):
    rig = make_rig()
    rig.engine.add_request(PROMPT, params())
    rig.engine.step()
    rig.engine.close()
    assert rig.executor.is_closed
    assert rig.engine.scheduler.num_free_pages == 64
    assert not rig.engine.scheduler.has_unfinished
