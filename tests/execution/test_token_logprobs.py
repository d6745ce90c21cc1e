"""Log-probabilities against float64 and full sorting."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.execution.token_logprobs import top_logprobs

TOP = jax.jit(top_logprobs, static_argnames="num_top")


def oracle(logits: Any, token_ids: Any, num_top: int):
    logits = np.asarray(logits, np.float64)
    highest = logits.max(axis=1, keepdims=True)
    logprobs = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    chosen = logprobs[np.arange(len(logits)), token_ids]
    order = np.argsort(-logits, axis=1, kind="stable")[:, :num_top]
    rank = [1 + sum(row > row[token]) for row, token in zip(logits, token_ids, strict=True)]
    return chosen, rank, order, np.take_along_axis(logprobs, order, axis=1)


def check(logits: Any, token_ids: Any, num_top: int):
    got = TOP(jnp.asarray(logits), jnp.asarray(token_ids, jnp.int32), num_top=num_top)
    expected = oracle(logits, token_ids, num_top)
    num_real = min(num_top, logits.shape[1])
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(got[2][:, :num_real], expected[2])
    np.testing.assert_allclose(got[3][:, :num_real], expected[3], rtol=1e-5, atol=2e-6)
    assert (got[2][:, num_real:] == logits.shape[1]).all()
    assert (got[3][:, num_real:] == -np.inf).all()


@pytest.mark.parametrize("vocab_size", [1, 13, 19, 20, 21, 129, 2560, 2561, 2700, 20000])
def test_distinct_logits(vocab_size: int):
    rng = np.random.default_rng(vocab_size)
    check(rng.normal(size=(6, vocab_size)).astype(np.float32) * 4, rng.integers(0, vocab_size, 6), 20)


@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([(40, 20), (700, 5), (3000, 20), (3001, 3)]))
def test_equal_logits_come_by_falling_value_then_rising_id(seed: int, num_values: int, sizes: tuple[int, int]):
    vocab_size, num_top = sizes
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, num_values, size=(3, vocab_size)).astype(np.float32)
    logits[0, rng.integers(0, vocab_size, 8)] = 9
    check(logits, rng.integers(0, vocab_size, 3), num_top)


@pytest.mark.parametrize("offset", [-1e30, -1e4, 1e4, 1e30])
def test_large_logits_do_not_overflow(offset: float):
    logits = np.float32(offset) + np.zeros((2, 300), np.float32)
    logprob, rank, ids, values = TOP(jnp.asarray(logits), jnp.array([7, 299]))
    np.testing.assert_allclose(logprob, -np.log(300), rtol=1e-6)
    np.testing.assert_allclose(values, -np.log(300), rtol=1e-6)
    assert rank.tolist() == [1, 1]
    np.testing.assert_array_equal(ids, [list(range(20))] * 2)


def test_tokens_without_probability_are_minus_infinity():
    logits = np.full((1, 4000), -np.inf, np.float32)
    logits[0, [3900, 5, 77]] = [1.0, 2.0, 1.0]
    logprob, rank, ids, values = TOP(jnp.asarray(logits), jnp.array([9]))
    assert logprob.tolist() == [-np.inf]
    assert rank.tolist() == [4]
    assert ids[0, :3].tolist() == [5, 77, 3900]
    assert (values[0, 3:] == -np.inf).all()
    assert len(set(ids[0].tolist())) == 20


def test_a_broken_row_harms_no_other():
    logits = np.random.default_rng(0).normal(size=(2, 3000)).astype(np.float32)
    alone = TOP(jnp.asarray(logits[1:]), jnp.array([4]))
    logits[0, 100] = np.nan
    for got, expected in zip(TOP(jnp.asarray(logits), jnp.array([100, 4])), alone, strict=True):
        np.testing.assert_array_equal(got[1], expected[0])
