"""The threshold searches keep exactly what sorting in float64 keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sarathi_jax.execution.sampling_filters import SamplingControls, kept_weights

KEPT = jax.jit(kept_weights)


def no_filters(num_rows: int) -> SamplingControls:
    ones, zeros = jnp.ones(num_rows), jnp.zeros(num_rows)
    whole = jnp.zeros(num_rows, jnp.int32)
    return SamplingControls(ones, whole, ones, zeros, jnp.zeros((num_rows, 2), jnp.uint32), whole)


def kept(logits: Any, **options: float) -> np.ndarray:
    """bool[R, V] of rows that share their options."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    controls = no_filters(len(logits))
    arrays = {name: jnp.full_like(getattr(controls, name), value) for name, value in options.items()}
    return np.asarray(KEPT(logits, logits.max(axis=1), controls._replace(**arrays)) > 0)


def oracle_top_k(row: Any, top_k: int):
    return row >= np.sort(row)[::-1][min(top_k, len(row)) - 1]


def oracle_top_p(row: Any, top_p: float, temperature: float = 1.0):
    """Tokens in the smallest prefix of the sorted ones that has the mass, with those equal to its last one."""
    scaled = row.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    ranked = np.sort(probabilities)[::-1]
    size = np.count_nonzero(np.cumsum(ranked) < top_p) + 1
    return probabilities >= ranked[min(size, len(row)) - 1]


SIZES = st.sampled_from([1, 2, 7, 13, 64, 129, 700])
# Few distinct values make ties; the full range of floats makes the search walk over exponents, signs, zeros and infinities.
TIED = st.integers(-3, 3).map(float)
WIDE = st.one_of(st.floats(-88, 80, width=32), st.sampled_from([0.0, -0.0, 1e-30, -1e-30]))


def rows(elements: st.SearchStrategy[float]):
    return SIZES.flatmap(lambda size: hnp.arrays(np.float32, size, elements=elements))


@given(rows(st.one_of(TIED, WIDE)), st.integers(1, 800))
def test_top_k_keeps_what_sorting_keeps(row: Any, top_k: int):
    row = row - row.max() if row.max() - row.min() > 80 else row
    expected = oracle_top_k(row, top_k) & (row - row.max() > -80)
    np.testing.assert_array_equal(kept(row, top_k=top_k)[0] & (row - row.max() > -80), expected)


@given(st.integers(0, 2**31), st.integers(1, 6000), st.floats(0.01, 50))
def test_top_k_keeps_exactly_k_of_distinct_logits(seed: int, top_k: int, scale: float):
    row = np.unique(np.random.default_rng(seed).normal(size=6000).astype(np.float32))
    row = np.random.default_rng(seed).permutation(row)
    mask = kept(row, top_k=top_k, temperature=100.0)[0]
    assert mask.sum() == min(top_k, len(row))
    np.testing.assert_array_equal(mask, oracle_top_k(row, top_k))


@given(rows(st.one_of(TIED, st.floats(-20, 20, width=32))), st.floats(0.001, 0.999), st.sampled_from([0.25, 1.0, 3.0]))
def test_top_p_keeps_what_sorting_keeps(row: Any, top_p: float, temperature: float):
    """Up to float32's rounding of the mass at the edge: the set lies between those of a slightly lower and a slightly higher top_p."""
    mask = kept(row, top_p=top_p, temperature=temperature)[0]
    low, high = (oracle_top_p(row, top_p + gap, temperature) for gap in (-2e-6, 2e-6))
    probable = row - row.max() > -80 * temperature
    assert (low & ~mask & probable).sum() == 0
    assert (mask & ~high & ~ties_of_smallest(row, mask)).sum() == 0


def ties_of_smallest(row: Any, mask: np.ndarray):
    """Logits so near to the smallest kept one that their float32 weights may be equal to its."""
    return np.isclose(row, row[mask].min(), rtol=1e-6, atol=1e-6)


@given(st.floats(0.0, 1.0, width=32), st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 2.0]))
def test_min_p_is_relative_to_the_largest_probability(min_p: float, seed: int, temperature: float):
    row = np.random.default_rng(seed).normal(size=300).astype(np.float32) * 4
    ratio = np.exp((row.astype(np.float64) - row.max()) / temperature)
    mask = kept(row, min_p=min_p, temperature=temperature)[0]
    assert mask[ratio > min_p * (1 + 1e-5)].all()
    assert not mask[ratio < min_p * (1 - 1e-5)].any()


# Probabilities in eighths and tenths, worked by hand.
BY_HAND = {
    "top_p ends on a token": ([0.5, 0.25, 0.125, 0.125], {"top_p": 0.7}, [1, 1, 0, 0]),
    "top_p of less than the largest": ([0.25, 0.5, 0.25], {"top_p": 0.01}, [0, 1, 0]),
    "top_p keeps the tied last ones": ([0.4, 0.2, 0.2, 0.2], {"top_p": 0.5}, [1, 1, 1, 1]),
    "top_p after temperature 0.5: 16 4 1 1 of 22": (
        [0.5, 0.25, 0.125, 0.125],
        {"top_p": 0.72, "temperature": 0.5},
        [1, 0, 0, 0],
    ),
    "top_p after temperature 2: flatter": ([0.64, 0.16, 0.16, 0.04], {"top_p": 0.44, "temperature": 2.0}, [1, 0, 0, 0]),
    "top_k 1": ([0.2, 0.5, 0.3], {"top_k": 1}, [0, 1, 0]),
    "top_k keeps the tied last ones": ([0.4, 0.2, 0.2, 0.1, 0.1], {"top_k": 2}, [1, 1, 1, 0, 0]),
    "top_k of the whole vocabulary": ([0.4, 0.3, 0.3], {"top_k": 3}, [1, 1, 1]),
    "top_k past the vocabulary": ([0.4, 0.3, 0.3], {"top_k": 2**31 - 1}, [1, 1, 1]),
    "top_p is of what top_k left: 5/8 and 3/8": ([0.5, 0.3, 0.2], {"top_k": 2, "top_p": 0.6}, [1, 0, 0]),
    "top_p alone needs both": ([0.5, 0.3, 0.2], {"top_p": 0.6}, [1, 1, 0]),
    "min_p": ([0.5, 0.3, 0.06, 0.14], {"min_p": 0.25}, [1, 1, 0, 1]),
    "min_p after temperature 0.5": ([0.5, 0.3, 0.2], {"min_p": 0.2, "temperature": 0.5}, [1, 1, 0]),
    "min_p 1 keeps the largest": ([0.3, 0.4, 0.3], {"min_p": 1.0}, [0, 1, 0]),
    "greedy rows are not filtered": ([0.4, 0.4, 0.2], {"temperature": 0.0, "top_k": 1}, [1, 1, 0]),
}


@pytest.mark.parametrize(("probabilities", "options", "expected"), BY_HAND.values(), ids=BY_HAND.keys())
def test_small_examples_by_hand(probabilities: Any, options: dict[str, Any], expected: Any):
    assert kept(np.log(probabilities), **options)[0].astype(int).tolist() == expected


def test_rows_without_a_filter_are_untouched_by_their_neighbours():
    logits = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    controls = no_filters(3)._replace(top_k=jnp.array([0, 3, 0]), top_p=jnp.array([1.0, 1.0, 0.2]))
    weights = np.asarray(KEPT(logits, logits.max(axis=1), controls))
    alone = KEPT(logits[:1], logits[:1].max(axis=1), no_filters(1))
    np.testing.assert_array_equal(weights[0], alone[0])
    assert (weights > 0).sum(axis=1).tolist()[:2] == [100, 3]


def test_masked_tokens_count_for_nothing():
    logits = np.array([-np.inf, 1.0, -np.inf, 0.5, -np.inf], np.float32)
    cases: list[dict[str, Any]] = [
        {"top_k": 4},
        {"top_k": 2},
        {"top_p": 0.999},
        {"min_p": 1e-9},
        {"top_k": 4, "top_p": 0.99},
    ]
    for options in cases:
        assert kept(logits, **options)[0].tolist() == [False, True, False, True, False]


def test_no_sort_in_the_program():
    text = KEPT.lower(jnp.zeros((4, 5000)), jnp.zeros(4), no_filters(4)).as_text()
    assert "stablehlo.while" in text
    assert "sort" not in text
