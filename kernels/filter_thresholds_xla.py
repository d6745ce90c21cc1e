"""Thresholds of top-k and top-p in plain jax.numpy, found by bisection over the float32 numbers themselves.

The order-preserving map between floats and unsigned integers makes the search exact: 32 halvings end at the one float that is wanted, each
of them one pass over the row. A long row is searched in its leading blocks first, those with the largest logits; if the threshold lies
where they hold every candidate, which is certain for a top-k up to their number, the 32 passes over the whole row are saved. Whether they
are depends on the row alone, and so does the sum behind its top-p. A filter that no row of the step uses costs nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sarathi_jax.sampling_params import GREEDY_TEMPERATURE

_SIGN = 0x80000000
_BLOCK = 64
_NUM_LEADING_BLOCKS = 128

# (values f32[R, N], thresholds f32[R]) -> bool[R]: whether the values from the threshold up are enough.
Criterion = Callable[[jax.Array, jax.Array], jax.Array]


def filter_thresholds(
    logits: jax.Array, max_logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """The smallest logit that is kept by top-k, and then by top-p of the rest.

    Args:
      logits: f32[R, V], without NaN or +inf in the rows that matter. -inf is a token of probability 0.
      max_logits: f32[R], finite; the largest logit of each row.
      temperature: f32[R], at least GREEDY_TEMPERATURE.
      top_k: i32[R], 0 keeps all.
      top_p: f32[R] in (0, 1], 1 keeps all.

    Returns: f32[R]; -inf where neither is used. The set that top-p keeps is the smallest of its mass but for ties, which are kept whole.
    """
    return lax.cond(
        jnp.any((top_k > 0) | (top_p < 1.0)),
        lambda: _top_k_and_p(logits, max_logits, temperature, top_k, top_p),
        lambda: jnp.full_like(max_logits, -jnp.inf),
    )


def kept_weights(logits: jax.Array, max_logits: jax.Array, temperature: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Unnormalised probabilities f32[R, N] of any columns f32[R, N] of the logits: 1 for the largest one, 0 below the row's threshold.

    One elementwise expression, meant to be fused into what reads it. Temperatures below GREEDY_TEMPERATURE count as that.
    """
    temperature = jnp.maximum(temperature, GREEDY_TEMPERATURE)
    weights = jnp.exp((logits - max_logits[:, None]) / temperature[:, None])
    return jnp.where(logits >= thresholds[:, None], weights, 0.0)


def _top_k_and_p(
    logits: jax.Array, max_logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    def has_k(logits: jax.Array, thresholds: jax.Array) -> jax.Array:
        return jnp.sum((logits >= thresholds[:, None]).astype(jnp.int32), axis=1) >= top_k

    def has_mass(weights: jax.Array, thresholds: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(weights >= thresholds[:, None], weights, 0.0), axis=1) >= target

    block_ids = _leading_blocks(logits)
    kth_logits = _search(has_k, logits, block_ids, (jnp.full_like(max_logits, -jnp.inf), max_logits), top_k > 0)
    weights = kept_weights(logits, max_logits, temperature, kth_logits)
    target = top_p * jnp.sum(weights, axis=1)
    last_weights = _search(has_mass, weights, block_ids, (jnp.zeros_like(top_p), jnp.ones_like(top_p)), top_p < 1.0)
    last_logits = jnp.min(jnp.where(weights >= last_weights[:, None], logits, jnp.inf), axis=1)
    return jnp.where(top_p < 1.0, jnp.maximum(last_logits, kth_logits), kth_logits)


def _leading_blocks(logits: jax.Array) -> jax.Array | None:
    """i32[R, _NUM_LEADING_BLOCKS + 1]: blocks by falling maximum, so that no logit outside of them is above the last one's. None if the row is short."""
    if logits.shape[1] <= _BLOCK * _NUM_LEADING_BLOCKS:
        return None
    return lax.top_k(jnp.max(_blocks(logits, -jnp.inf), axis=2), _NUM_LEADING_BLOCKS + 1)[1]


def _blocks(values: jax.Array, padding: float) -> jax.Array:
    num_rows, width = values.shape
    num_blocks = -(-width // _BLOCK)
    values = jnp.pad(values, ((0, 0), (0, num_blocks * _BLOCK - width)), constant_values=padding)
    return values.reshape(num_rows, num_blocks, _BLOCK)


def _search(
    is_enough: Criterion,
    values: jax.Array,
    block_ids: jax.Array | None,
    bounds: tuple[jax.Array, jax.Array],
    is_used: jax.Array,
) -> jax.Array:
    """f32[R]: the largest threshold within the bounds that leaves enough of the values f32[R, V]; the lower bound where not used."""
    low, high = bounds

    def search_all() -> jax.Array:
        return _largest_that(lambda at: is_enough(values, at), low, high)

    def search_leading_first() -> jax.Array:
        if block_ids is None:
            return search_all()
        blocks = jnp.take_along_axis(_blocks(values, -jnp.inf), block_ids[:, :, None], axis=1)
        leading, largest_left = blocks[:, :-1].reshape(len(blocks), -1), jnp.max(blocks[:, -1], axis=1)
        found = _largest_that(lambda at: is_enough(leading, at), low, high)
        # From the largest value left out upwards, the leading blocks hold every value there is.
        is_exact = found >= largest_left
        return lax.cond(jnp.all(is_exact | ~is_used), lambda: found, lambda: jnp.where(is_exact, found, search_all()))

    return lax.cond(jnp.any(is_used), lambda: jnp.where(is_used, search_leading_first(), low), lambda: low)


def _largest_that(holds: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """The largest float from `low` to `high`, in each row, at which `holds`, where it never holds again once it has not; `low` if there is none."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, past = bounds
        middle = low + (past - low) // jnp.uint32(2)
        is_held = holds(_key_floats(middle))
        return jnp.where(is_held, middle, low), jnp.where(is_held, past, middle)

    bounds = _float_keys(low), _float_keys(high) + jnp.uint32(1)
    return _key_floats(lax.fori_loop(0, 32, halve, bounds)[0])


def _float_keys(values: jax.Array) -> jax.Array:
    """u32 keys in the order of the floats f32 (no NaN): the sign bit set for positives, all bits flipped for negatives."""
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >= jnp.uint32(_SIGN), ~bits, bits | jnp.uint32(_SIGN))


def _key_floats(keys: jax.Array) -> jax.Array:
    bits = jnp.where(keys >= jnp.uint32(_SIGN), keys & jnp.uint32(_SIGN - 1), ~keys)
    return lax.bitcast_convert_type(bits, jnp.float32)
