"""The GPU's search for top-k and top-p thresholds, in Triton's interpreter: by hand, and against the plain one, which `test_sampling_filters` judges by sorting.

Broken by hand, once each, and caught: every comparison made strict, fewer halvings than either search needs, the largest number left out of either, the mass
not limited to what top-k left, the temperature, the order of negative numbers, and a row's padding taken for logits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.kernels import filter_thresholds_xla, registry

pytestmark = pytest.mark.usefixtures("triton")
plain = jax.jit(filter_thresholds_xla.filter_thresholds)


def interpreted(*arguments: Any) -> Any:
    use = registry.use_on(jax.devices()[0], np.float32, 64)
    return registry.choose("filter_thresholds", use, implementation="triton-interpreter")(*arguments)


def thresholds(find: Any, logits: Any, top_k: Any, top_p: Any, temperature: Any = 1.0) -> np.ndarray:
    """f32[R]; options are of all rows, or one a row."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    columns = [np.broadcast_to(np.asarray(each), len(logits)) for each in (temperature, top_k, top_p)]
    dtypes = (np.float32, np.int32, np.float32)
    options = [jnp.asarray(column.astype(dtype)) for column, dtype in zip(columns, dtypes, strict=True)]
    return np.asarray(find(jnp.asarray(logits), jnp.asarray(logits.max(1)), *options))


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature", "expected"),
    [
        (0, 1.0, 1.0, -np.inf),  # neither
        (1, 1.0, 1.0, 0.5),
        (3, 1.0, 1.0, 0.125),  # the fourth is its tie
        (0, 0.7, 1.0, 0.25),
        (0, 0.01, 1.0, 0.5),
        (2, 0.66, 1.0, 0.5),  # of what is left, 2/3 and 1/3
        (2, 2 / 3, 1.0, 0.5),  # just enough
        (2, 0.7, 1.0, 0.25),
        (0, 0.72, 0.5, 0.5),  # 16, 4, 1, 1 of 22
        (4, 1.0, 1.0, 0.125),  # all there are
    ],
)
def test_small_examples_by_hand(top_k: int, top_p: float, temperature: float, expected: float) -> None:
    got = thresholds(interpreted, np.log([0.125, 0.5, 0.125, 0.25]), top_k, top_p, temperature)
    assert np.exp(got).tolist() == pytest.approx([0.0 if expected == -np.inf else expected])


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (0, 0.3)])
def test_neighbouring_numbers_are_told_apart(top_k: int, top_p: float) -> None:
    """The second logit is the largest float32 below the first, and so is its weight below 1."""
    assert thresholds(interpreted, [1.0, np.nextafter(np.float32(1), np.float32(0))], top_k, top_p).tolist() == [1.0]


@settings(max_examples=6)
@given(seed=st.integers(0, 999), vocab_size=st.sampled_from([5, 300, 17_000]), is_tied=st.booleans())
def test_the_plain_search_finds_the_same(seed: int, vocab_size: int, is_tied: bool) -> None:
    """17,000 logits are two blocks. Sums of float32 in another order may part tokens of almost equal mass otherwise: never those further apart."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(5, vocab_size)).astype(np.float32) * 3
    logits = np.round(logits, 1) if is_tied else logits
    logits[0, ::2] = -np.inf  # masked
    top_k, top_p = np.array([7, 40, 0, 3, 0]), np.array([1.0, 0.9, 0.5, 1.0, 1.0])
    got, expected = (thresholds(find, logits, top_k, top_p, 1.3) for find in (interpreted, plain))
    is_exact = top_p == 1
    np.testing.assert_array_equal(got[is_exact], expected[is_exact])
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 if vocab_size > 300 else 1e-5)
