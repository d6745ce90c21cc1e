"""Top-k, top-p and min-p without sorting: each filter is a threshold on the logits, found by bisection over the float32 numbers themselves.

The order-preserving map between floats and unsigned integers makes the search exact: 32 halvings end at the one float that is wanted, each
of them one pass over the logits. A filter that no row of the step uses costs nothing.

Ties are kept: a threshold cannot part equal logits, so top-k may keep more than k tokens and top-p more than its smallest set, and which
token has the lower id never matters.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sarathi_jax.sampling_params import GREEDY_TEMPERATURE

_SIGN = 0x80000000


class SamplingControls(NamedTuple):
    """How each row is drawn. Leading axis R on every array.

    temperature: f32, greedy below GREEDY_TEMPERATURE. top_k: i32, 0 keeps all. top_p: f32 in (0, 1]. min_p: f32 in [0, 1].
    seed: u32[R, 2], low word first. position: i32, of the token that is drawn, counted from the start of the prompt.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    position: jax.Array


def kept_weights(logits: jax.Array, max_logits: jax.Array, controls: SamplingControls) -> jax.Array:
    """Unnormalised probabilities after temperature and filters; 0 for a token that must not be drawn.

    Args:
      logits: f32[R, V], without NaN or +inf in the rows that matter. -inf is a token of probability 0.
      max_logits: f32[R], finite; the largest logit of each row.
      controls: of R rows. Greedy rows get the weights of temperature GREEDY_TEMPERATURE, and no top-k or top-p.
    Returns: f32[R, V], 1 for the largest logit.
    """
    is_drawn = controls.temperature >= GREEDY_TEMPERATURE
    temperature = jnp.maximum(controls.temperature, GREEDY_TEMPERATURE)
    weights = jnp.exp((logits - max_logits[:, None]) / temperature[:, None])
    weights = _keep_top_k(logits, weights, max_logits, jnp.where(is_drawn, controls.top_k, 0))
    weights = _keep_top_p(weights, jnp.where(is_drawn, controls.top_p, 1.0))
    return jnp.where(weights >= controls.min_p[:, None], weights, 0.0)


def _keep_top_k(logits: jax.Array, weights: jax.Array, max_logits: jax.Array, top_k: jax.Array) -> jax.Array:
    is_used = (top_k > 0) & (top_k < logits.shape[1])

    def has_k(thresholds: jax.Array) -> jax.Array:
        return jnp.sum((logits >= thresholds[:, None]).astype(jnp.int32), axis=1) >= top_k

    def keep(weights: jax.Array) -> jax.Array:
        thresholds = _largest_that(has_k, jnp.full_like(max_logits, -jnp.inf), max_logits)
        return jnp.where((logits >= thresholds[:, None]) | ~is_used[:, None], weights, 0.0)

    return lax.cond(jnp.any(is_used), keep, lambda weights: weights, weights)


def _keep_top_p(weights: jax.Array, top_p: jax.Array) -> jax.Array:
    is_used = top_p < 1.0

    def mass(weights: jax.Array, thresholds: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(weights >= thresholds[:, None], weights, 0.0), axis=1)

    def keep(weights: jax.Array) -> jax.Array:
        zeros, ones = jnp.zeros_like(top_p), jnp.ones_like(top_p)
        target = top_p * mass(weights, zeros)
        thresholds = _largest_that(lambda at: mass(weights, at) >= target, zeros, ones)
        return jnp.where((weights >= thresholds[:, None]) | ~is_used[:, None], weights, 0.0)

    return lax.cond(jnp.any(is_used), keep, lambda weights: weights, weights)


def _largest_that(holds: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """The largest float from `low` to `high`, in each row, at which `holds`; it does at `low`, and no longer does once it has stopped."""

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
