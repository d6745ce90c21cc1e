"""The threshold searches keep exactly what sorting in float64 keeps."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sarathi_jax.execution.sampling_filters import SamplingControls, smallest_kept
from sarathi_jax.kernels.filter_thresholds_xla import filter_thresholds, kept_weights


@jax.jit
def filtered_weights(logits: jax.Array, max_logits: jax.Array, controls: SamplingControls) -> jax.Array:
    thresholds = smallest_kept(logits, max_logits, controls, filter_thresholds)
    return kept_weights(logits, max_logits, controls.temperature, thresholds)


def no_filters(num_rows: int) -> SamplingControls:
    ones, zeros, whole = (np.full(num_rows, value) for value in (np.float32(1), np.float32(0), np.int32(0)))
    columns = SamplingControls(*map(jnp.asarray, (ones, whole, ones, zeros, whole, whole)))
    return columns._replace(seed=jnp.asarray(np.zeros((num_rows, 2), np.uint32)))


def kept(logits: Any, **options: Any) -> np.ndarray:
    """bool[R, V]; each option is for all rows, or has one value per row."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    controls = no_filters(len(logits))
    for name, value in options.items():
        column = np.broadcast_to(np.asarray(value, getattr(controls, name).dtype), (len(logits),))
        controls = controls._replace(**{name: jnp.asarray(column)})
    return np.asarray(filtered_weights(logits, logits.max(axis=1), controls)) > 0


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


SIZES = st.sampled_from([1, 2, 13, 129, 700])
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


@pytest.mark.parametrize("start", [-88.0, -1e-3, 1e-3, 79.0])
def test_neighbouring_floats_are_told_apart(start: float):
    row = (np.float32(start).view(np.int32) + np.arange(64, dtype=np.int32)).view(np.float32)
    row = row if start > 0 else row[::-1]
    mask = kept(np.tile(row, (64, 1)), top_k=np.arange(1, 65))
    np.testing.assert_array_equal(mask, np.arange(64)[None, ::-1] < np.arange(1, 65)[:, None])


@given(st.integers(0, 2**31), st.sampled_from([8192, 9001]), st.integers(1, 400), st.booleans())
def test_top_k_of_long_rows(seed: int, vocab_size: int, top_k: int, is_tied: bool):
    """Longer than the leading blocks hold: found there for a small k, in the whole row for others, whatever the neighbour needs."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, vocab_size)).astype(np.float32)
    logits = np.round(logits, 1) if is_tied else logits
    mask = kept(logits, top_k=[top_k, 5000], temperature=100.0)
    np.testing.assert_array_equal(mask[0], oracle_top_k(logits[0], top_k))
    np.testing.assert_array_equal(mask[1], oracle_top_k(logits[1], 5000))


@given(
    st.integers(0, 2**31),
    st.sampled_from([0.5, 3.0, 12.0]),
    st.sampled_from([0, 3, 100, 500]),
    st.sampled_from([0.3, 0.9, 0.999]),
)
def test_top_p_of_long_rows(seed: int, spread: float, top_k: int, top_p: float):
    """Peaked rows are decided in their leading blocks, flat ones are not: the same row beside either keeps the same."""
    rng = np.random.default_rng(seed)
    row, flat, peaked = (rng.normal(size=9001).astype(np.float32) * scale for scale in (spread, 0.1, 30.0))
    beside_flat = kept([row, flat], top_k=[top_k, 0], top_p=top_p)
    beside_peaked = kept([row, peaked], top_k=[top_k, 0], top_p=top_p)
    np.testing.assert_array_equal(beside_flat[0], beside_peaked[0])
    left = np.where(oracle_top_k(row, top_k or len(row)), row, -np.inf)
    low, high = (oracle_top_p(left, top_p + gap) for gap in (-2e-6, 2e-6))
    assert not (low & ~beside_flat[0]).any()
    assert not (beside_flat[0] & ~high).any()


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
    weights = np.asarray(filtered_weights(logits, logits.max(axis=1), controls))
    alone = filtered_weights(logits[:1], logits[:1].max(axis=1), no_filters(1))
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
    text = filtered_weights.lower(jnp.zeros((4, 20_000)), jnp.zeros(4), no_filters(4)).as_text()
    assert "stablehlo.while" in text
    assert ".sort" not in text
    assert not re.search(r"top_k.*tensor<4x20000", text)
