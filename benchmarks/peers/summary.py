"""What the answers of a load come to: figures of one turn, their medians, and how far two peers said the same."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, median

import numpy as np

from benchmarks.peers.load import Answer, Request

Figures = dict[str, float]


def batch_figures(answers: Sequence[Answer]) -> Figures:
    """Of requests that were all there at the start. Gaps are those of all requests, pooled."""
    gaps = [gap for answer in answers for gap in _gaps(answer)]
    return {
        "output_tokens_per_s": _num_tokens(answers) / _end_s(answers),
        "median_ttft_ms": 1e3 * median(map(_ttft_s, answers)),
        "max_ttft_ms": 1e3 * max(map(_ttft_s, answers)),
        "median_tbt_ms": 1e3 * median(gaps),
        "p99_tbt_ms": 1e3 * float(np.percentile(gaps, 99)),
    }


def mixed_figures(requests: Sequence[Request], answers: Sequence[Answer]) -> Figures:
    """Of decodes and the long prompts that come while they run.

    *_with_prompts: over the gaps of the decodes that lie, wholly or in part, between a long prompt's arrival and its first token. median_tbt_ms: of their other gaps;
    0.0 if there are none.
    """
    decodes = [answer for request, answer in zip(requests, answers, strict=True) if not request.after_tokens]
    late = [answer for request, answer in zip(requests, answers, strict=True) if request.after_tokens]
    spans = [(answer.arrival_s, answer.token_times_s[0]) for answer in late]
    during: list[float] = []
    other: list[float] = []
    for start_s, end_s in (pair for answer in decodes for pair in pairwise(answer.token_times_s)):
        is_during = any(start_s < span_end_s and end_s > span_start_s for span_start_s, span_end_s in spans)
        (during if is_during else other).append(end_s - start_s)
    return {
        "output_tokens_per_s": _num_tokens(answers) / _end_s(answers),
        "median_tbt_ms": 1e3 * median(other or [0.0]),
        "median_tbt_with_prompts_ms": 1e3 * median(during or [0.0]),
        "max_tbt_with_prompts_ms": 1e3 * max(during, default=0.0),
        "median_long_ttft_ms": 1e3 * median(map(_ttft_s, late)),
    }


def medians(turns: Sequence[Figures]) -> Figures:
    """Each figure's median over the turns."""
    return {name: round(median(turn[name] for turn in turns), 2) for name in turns[0]}


def agreement(ours: Sequence[Answer], theirs: Sequence[Answer]) -> Figures:
    """same_outputs: share of requests whose tokens agree to the last. same_tokens: mean share of a request's tokens before the first that differs."""
    pairs = [(a.token_ids, b.token_ids) for a, b in zip(ours, theirs, strict=True)]
    return {
        "same_outputs": round(mean(a == b for a, b in pairs), 4),
        "same_tokens": round(mean(_common(a, b) / len(a) for a, b in pairs), 4),
    }


def _common(first: list[int], second: list[int]) -> int:
    """Tokens before the first that differs."""
    return next(
        (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _gaps(answer: Answer) -> list[float]:
    return [later - sooner for sooner, later in pairwise(answer.token_times_s)]


def _ttft_s(answer: Answer) -> float:
    return answer.token_times_s[0] - answer.arrival_s


def _num_tokens(answers: Sequence[Answer]) -> int:
    return sum(len(answer.token_ids) for answer in answers)


def _end_s(answers: Sequence[Answer]) -> float:
    return max(answer.token_times_s[-1] for answer in answers)
