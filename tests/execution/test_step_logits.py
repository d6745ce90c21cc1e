"""What the step program does with logits, through the whole engine: log-probabilities, penalties and masks, against the dense forward and numpy.

Tokens are judged one by one on the sequence that came: each must be the largest of its row's adjusted logits, up to the two programs' rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from sarathi_jax.outputs import RequestOutput, TokenLogprobs
from sarathi_jax.sampling_params import SamplingParams

RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(3, 37, size).tolist() for size in (1, 5, 41, 70)]  # the last two are longer than a step
BOUND = 1e-4


def greedy(max_tokens: int = 12, **options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **options})


def check_logprobs(got: TokenLogprobs | None, token_id: int, row: np.ndarray, num_top: int | None) -> None:
    """row: f64[V], log-probabilities of the dense forward."""
    assert got is not None
    assert got.logprob == pytest.approx(row[token_id], abs=BOUND)
    assert abs(got.rank - 1 - (row > row[token_id]).sum()) <= (np.abs(row - row[token_id]) < BOUND).sum() - 1
    assert len(got.top) == num_top
    values = [value for _, value in got.top]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(values, np.sort(row)[::-1][:num_top], rtol=0, atol=BOUND)
    np.testing.assert_allclose(values, [row[each] for each, _ in got.top], rtol=0, atol=BOUND)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_logprobs_of_sampled_tokens(tiny: Any, overlap: bool, temperature: float):
    """They are the model's own: neither temperature nor top_k nor penalties change them."""
    options = {"temperature": temperature, "top_k": 9, "presence_penalty": 0.5, "seed": 5}
    calls = [(prompt, greedy(logprobs=top, **options)) for prompt, top in zip(PROMPTS, (0, 1, 5, 20), strict=True)]
    for (prompt, params), output in zip(calls, tiny.run(*calls, overlap=overlap), strict=True):
        sample = output.outputs[0]
        rows = tiny.logprobs([*prompt, *sample.token_ids])[len(prompt) - 1 :]
        assert len(sample.logprobs) == len(sample.token_ids) == 12
        for got, token_id, row in zip(sample.logprobs, sample.token_ids, rows, strict=False):
            check_logprobs(got, token_id, row, params.logprobs)


def check_prompt_logprobs(tiny: Any, output: RequestOutput, num_top: int) -> None:
    prompt, got = output.prompt_token_ids, output.prompt_logprobs
    assert got is not None
    assert len(got) == len(prompt)
    assert got[0] is None
    for each, token_id, row in zip(got[1:], prompt[1:], tiny.logprobs(prompt), strict=False):
        check_logprobs(each, token_id, row, num_top)


@pytest.mark.parametrize("options", [{}, {"token_budget": 7}, {"overlap": False}, {"preempt_every_steps": 2}])
def test_prompt_logprobs(tiny: Any, options: dict[str, Any]):
    """Over chunks of several sizes, beside requests that ask for none."""
    calls = [(prompt, greedy(prompt_logprobs=3)) for prompt in PROMPTS]
    calls.insert(1, (PROMPTS[3][::-1], greedy()))
    outputs = tiny.run(*calls, **options)
    assert outputs.pop(1).prompt_logprobs is None
    for output in outputs:
        check_prompt_logprobs(tiny, output, 3)


def test_prompt_logprobs_are_whole_when_the_prompt_is_in_the_cache(tiny: Any):
    engine = tiny.engine()
    for params in (greedy(), greedy(), greedy(prompt_logprobs=0)):
        output = tiny.run_on(engine, (PROMPTS[3], params))[0]
    check_prompt_logprobs(tiny, output, 0)


def test_prompt_logprobs_with_several_samples(tiny: Any):
    params = greedy(n=3, prompt_logprobs=2, temperature=1.0, logprobs=1, seed=3)
    output = tiny.run((PROMPTS[2], params))[0]
    check_prompt_logprobs(tiny, output, 2)
    assert len({tuple(sample.token_ids) for sample in output.outputs}) == 3
    for sample in output.outputs:
        rows = tiny.logprobs([*PROMPTS[2], *sample.token_ids])[len(PROMPTS[2]) - 1 :]
        for got, token_id, row in zip(sample.logprobs, sample.token_ids, rows, strict=False):
            check_logprobs(got, token_id, row, 1)


def check_greedy(tiny: Any, output: RequestOutput, adjust: Callable[[np.ndarray, list[int], list[int]], None]) -> None:
    """adjust: changes a row of logits in place, given prompt and output so far."""
    prompt, token_ids = output.prompt_token_ids, output.outputs[0].token_ids
    rows = tiny.logits([*prompt, *token_ids])[len(prompt) - 1 :]
    num_changed = 0
    for place, token_id in enumerate(token_ids):
        row = rows[place].copy()
        adjust(row, prompt, token_ids[:place])
        assert row[token_id] >= row.max() - 10 * BOUND, f"token {place} of {token_ids}"
        num_changed += rows[place].argmax() != token_id
    assert num_changed, "the option must matter here, or this test shows nothing"


def run_with(tiny: Any, adjust: Any, **options: Any) -> list[RequestOutput]:
    """Prompts beside others without the option; all tokens checked."""
    calls = [(prompt, greedy(20, **options)) for prompt in (PROMPTS[1], PROMPTS[3])]
    outputs = tiny.run(*calls, (PROMPTS[2], greedy(20)), preempt_every_steps=5)
    for output in outputs[:2]:
        check_greedy(tiny, output, adjust)
    return outputs[:2]


def test_repetition_penalty_counts_prompt_and_output(tiny: Any):
    def adjust(row: np.ndarray, prompt: Sequence[int], output: Sequence[int]) -> None:
        seen = [*{*prompt, *output}]
        row[seen] = np.where(row[seen] > 0, row[seen] / 1.7, row[seen] * 1.7)

    run_with(tiny, adjust, repetition_penalty=1.7)


def test_presence_and_frequency_penalties_count_output_alone(tiny: Any):
    def adjust(row: np.ndarray, prompt: Sequence[int], output: Sequence[int]) -> None:
        for token in set(output):
            row[token] -= 1.5 + 0.75 * output.count(token)

    run_with(tiny, adjust, presence_penalty=1.5, frequency_penalty=0.75)


def test_logit_bias(tiny: Any):
    bias = {3: 2.0, 11: -50.0, 36: 1.0, 0: -3.0}

    def adjust(row: np.ndarray, prompt: Sequence[int], output: Sequence[int]) -> None:
        row[list(bias)] += list(bias.values())

    run_with(tiny, adjust, logit_bias=bias)


def test_only_allowed_ids_are_drawn(tiny: Any):
    allowed = (0, 5, 31, 32, 36)

    def adjust(row: np.ndarray, prompt: Sequence[int], output: Sequence[int]) -> None:
        row[[token not in allowed for token in range(37)]] = -np.inf

    for output in run_with(tiny, adjust, allowed_token_ids=allowed):
        assert set(output.outputs[0].token_ids) <= set(allowed)


def test_min_tokens_bans_every_way_to_stop(tiny: Any):
    """The end-of-sequence id 2 and the request's own stop ids, all of them wanted much, come from the 7th token on."""
    bias = {2: 60.0, 9: 50.0, 10: 40.0}
    params = greedy(20, ignore_eos=False, min_tokens=6, stop_token_ids=(9, 10), logit_bias=bias)
    for output in tiny.run((PROMPTS[1], params), (PROMPTS[3], params), preempt_every_steps=3):
        token_ids = output.outputs[0].token_ids
        assert not set(token_ids[:-1]) & {2, 9, 10}
        assert (len(token_ids), token_ids[-1], output.outputs[0].finish_reason) == (7, 2, "stop")


def test_an_ignored_end_of_sequence_is_no_way_to_stop(tiny: Any):
    params = greedy(6, min_tokens=4, stop_token_ids=(9,), logit_bias={2: 60.0, 9: 50.0})
    assert tiny.run((PROMPTS[1], params))[0].outputs[0].token_ids == [2] * 6


def test_options_of_a_slots_last_request_are_gone(tiny: Any):
    """One batch slot: each request has it after one with other options."""
    engine = tiny.engine(max_num_seqs=1)
    marked = greedy(3, allowed_token_ids=(5, 6), logit_bias={7: 9.0}, repetition_penalty=3.0, min_tokens=2)
    for params in (marked, greedy(8, logprobs=0), marked, greedy(8)):
        output = tiny.run_on(engine, (PROMPTS[1], params))[0]
        rows = tiny.logits([*PROMPTS[1], *output.outputs[0].token_ids])[len(PROMPTS[1]) - 1 : -1]
        is_plain = rows.argmax(-1).tolist() == output.outputs[0].token_ids
        assert is_plain == (params is not marked)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_request_without_options_is_served_beside_one_with(tiny: Any, overlap: bool):
    """In slots that were never set up, and in ones that another request left its masks and biases in."""
    engine = tiny.engine(overlap=overlap)
    marked = greedy(9, allowed_token_ids=(5, 6), logit_bias={7: 90.0})
    for _ in range(3):
        outputs = tiny.run_on(engine, (PROMPTS[1], greedy(9)), (PROMPTS[0], marked), *4 * [(PROMPTS[2], greedy(9))])
        assert set(outputs.pop(1).outputs[0].token_ids) <= {5, 6}
        for output in outputs:
            tokens = output.outputs[0].token_ids
            rows = tiny.logits([*output.prompt_token_ids, *tokens])[len(output.prompt_token_ids) - 1 : -1]
            assert rows.argmax(-1).tolist() == tokens
