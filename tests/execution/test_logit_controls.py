"""Bias, masks, bans and penalties: small examples by hand, and a float64 implementation with Python's own loops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.execution.logit_controls import LogitControls, apply

APPLY = jax.jit(apply)
INF = np.inf


def words(allowed: list[int] | None, vocab_size: int):
    """u32 words of a list of allowed ids; all ones for None."""
    bits = np.full(-(-vocab_size // 32), 0xFFFFFFFF if allowed is None else 0, np.uint32)
    for token in allowed or ():
        bits[token // 32] |= np.uint32(1 << (token % 32))
    return bits


def controls_of(rows: Any, vocab_size: int, *, length: int = 12):
    """LogitControls of dicts with any of repetition, presence, frequency, prompt, output, bias, allowed, stops, is_banned."""

    def stack(read: Any, dtype: Any):
        return jnp.asarray(np.array([read(row) for row in rows], dtype))

    def padded(ids: Any, size: int, fill: int):
        return [*ids, *[fill] * (size - len(ids))]

    def history(row: Any):
        # What lies past the known tokens is some other request's.
        return padded([*row.get("prompt", ()), *row.get("output", ())], length, 1)

    return LogitControls(
        stack(lambda row: row.get("repetition", 1), np.float32),
        stack(lambda row: row.get("presence", 0), np.float32),
        stack(lambda row: row.get("frequency", 0), np.float32),
        stack(history, np.int32),
        stack(lambda row: len(row.get("prompt", ())), np.int32),
        stack(lambda row: len(row.get("prompt", ())) + len(row.get("output", ())), np.int32),
        stack(lambda row: padded(list(row.get("bias", {})), 4, vocab_size), np.int32),
        stack(lambda row: padded(list(row.get("bias", {}).values()), 4, 0), np.float32),
        stack(lambda row: words(row.get("allowed"), vocab_size), np.uint32),
        stack(lambda row: padded(row.get("stops", ()), 5, vocab_size), np.int32),
        stack(lambda row: row.get("is_banned", False), bool),
    )


def applied(logits: Any, *rows: Any):
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    return np.asarray(APPLY(jnp.asarray(logits), controls_of(rows, logits.shape[1])))


BY_HAND = {
    "repetition divides what is positive": ([4, 2, 1], {"repetition": 2, "prompt": [0]}, [2, 2, 1]),
    "repetition multiplies what is negative": ([4, -2, 1], {"repetition": 2, "output": [1]}, [4, -4, 1]),
    "repetition counts no token twice": ([4, 2, 1], {"repetition": 2, "prompt": [0, 0], "output": [0]}, [2, 2, 1]),
    "repetition below 1 encourages": ([4, -2, 1], {"repetition": 0.5, "prompt": [0, 1]}, [8, -1, 1]),
    "repetition leaves 0 and -inf": ([0, -INF, 1], {"repetition": 2, "prompt": [0, 1]}, [0, -INF, 1]),
    "presence once for a token of the output": ([4, 2, 1], {"presence": 0.5, "output": [0, 0, 2]}, [3.5, 2, 0.5]),
    "presence not for the prompt": ([4, 2, 1], {"presence": 0.5, "prompt": [0, 1], "output": [1]}, [4, 1.5, 1]),
    "frequency per occurrence": ([4, 2, 1], {"frequency": 0.5, "prompt": [2], "output": [0, 0, 1]}, [3, 1.5, 1]),
    "negative penalties encourage": ([4, 2, 1], {"presence": -1, "frequency": -0.5, "output": [1, 1]}, [4, 4, 1]),
    "repetition first, then the others": (
        [4, 2, 1],
        {"repetition": 2, "presence": 0.25, "frequency": 0.5, "prompt": [0], "output": [0, 0, 1]},
        [0.75, 0.25, 1],
    ),
    "bias": ([4, 2, 1], {"bias": {2: 5, 0: -100}}, [-96, 2, 6]),
    "bias comes before penalties": ([4, 2, 1], {"bias": {0: -6}, "repetition": 2, "prompt": [0]}, [-4, 2, 1]),
    "allowed ids": ([4, 2, 1], {"allowed": [1]}, [-INF, 2, -INF]),
    "bias does not undo the mask": ([4, 2, 1], {"allowed": [1], "bias": {0: 100}}, [-INF, 2, -INF]),
    "stops are banned before the minimum": ([4, 2, 1], {"stops": [0, 2], "is_banned": True}, [-INF, 2, -INF]),
    "stops are free after it": ([4, 2, 1], {"stops": [0, 2]}, [4, 2, 1]),
    "a stop named twice": ([4, 2, 1], {"stops": [0, 0], "is_banned": True}, [-INF, 2, 1]),
    "a ban outlasts penalties": (
        [4, 2, 1],
        {"stops": [0], "is_banned": True, "output": [0], "presence": -2, "frequency": -2, "repetition": 3},
        [-INF, 2, 1],
    ),
}


@pytest.mark.parametrize(("logits", "row", "expected"), BY_HAND.values(), ids=BY_HAND.keys())
def test_small_examples_by_hand(logits: Any, row: Any, expected: Any):
    np.testing.assert_array_equal(applied(logits, row)[0], np.float32(expected))


@pytest.mark.parametrize("vocab_size", [5, 31, 32, 33, 100])
def test_rows_that_ask_for_nothing_keep_their_bits(vocab_size: int):
    logits = np.random.default_rng(0).normal(size=(3, vocab_size)).astype(np.float32)
    logits[:, :5] = [-0.0, np.nan, INF, -INF, 1e-42]
    busy = {"repetition": 1.3, "presence": 1, "frequency": 1, "prompt": [0], "output": [3]}
    busy |= {"bias": {1: 3}, "allowed": [4], "stops": [2], "is_banned": True}
    idle = {"prompt": [0, 1, 2], "output": [3, 4], "stops": [0, 4]}
    for rows in ((idle, idle, idle), (idle, busy, idle)):
        result = applied(logits, *rows)
        np.testing.assert_array_equal(result[::2].view(np.int32), logits[::2].view(np.int32))


@pytest.mark.parametrize("row", [{"allowed": [0]}, {"stops": [1, 2], "is_banned": True}, {"bias": {1: -1e4, 2: -1e4}}])
def test_a_broken_logit_is_not_masked_away(row: Any):
    result = applied([[1, np.nan, 3], [1, 2, INF]], row, row)
    assert (np.isnan(result) | (result == INF)).any(axis=1).all()


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, 95])
def test_the_mask_has_its_bits_in_order(vocab_size: int):
    for token in {0, vocab_size // 2, vocab_size - 1}:
        result = applied(np.zeros(vocab_size), {"allowed": [token]})[0]
        assert np.flatnonzero(result == 0).tolist() == [token]


def oracle(logits: Any, row: Any):
    result = [float(x) for x in logits]
    for token, bias in row["bias"].items():
        result[token] += bias
    for token in range(len(result)):
        if token not in row["allowed"] or (row["is_banned"] and token in row["stops"]):
            result[token] = -INF
    for token in set(row["prompt"] + row["output"]):
        result[token] *= row["repetition"] if result[token] <= 0 else 1 / row["repetition"]
    for token in set(row["output"]):
        result[token] -= row["frequency"] * row["output"].count(token) + row["presence"]
    return result


IDS = st.integers(0, 12)
ROWS = st.fixed_dictionaries(
    {
        "repetition": st.sampled_from([1.0, 0.3, 1.7]),
        "presence": st.sampled_from([0.0, -1.5, 2.0]),
        "frequency": st.sampled_from([0.0, -0.7, 0.4]),
        "prompt": st.lists(IDS, max_size=6),
        "output": st.lists(IDS, max_size=6),
        "bias": st.dictionaries(IDS, st.floats(-9, 9, width=32), max_size=4),
        "allowed": st.one_of(st.just(list(range(13))), st.lists(IDS, min_size=1)),
        "stops": st.lists(IDS, max_size=5),
        "is_banned": st.booleans(),
    }
)


@given(st.lists(ROWS, min_size=4, max_size=4), st.integers(0, 99))
def test_any_mix_is_what_plain_loops_give(rows: Any, seed: int):
    logits = np.random.default_rng(seed).normal(size=(4, 13)).astype(np.float32) * 5
    expected = [oracle(*pair) for pair in zip(logits, rows, strict=True)]
    np.testing.assert_allclose(applied(logits, *rows), expected, rtol=1e-6, atol=1e-5)


def test_a_row_is_independent_of_its_batch():
    logits = np.random.default_rng(3).normal(size=(4, 40)).astype(np.float32)
    rows = [{"repetition": 1.1 + n, "prompt": [n], "output": [n, 5, 5], "frequency": 0.3 * n} for n in range(4)]
    together = applied(logits, *rows)
    for n in range(4):
        np.testing.assert_array_equal(applied(logits[n], rows[n])[0], together[n])
