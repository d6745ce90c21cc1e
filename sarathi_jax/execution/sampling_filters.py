"""Top-k, top-p and min-p without sorting: each filter is a threshold on the logits.

Ties are kept: a threshold cannot part equal logits, so top-k may keep more than k tokens and top-p more than its smallest set, and which
token has the lower id never matters. For top-p, tokens are equal if their probabilities are so in float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sarathi_jax.sampling_params import GREEDY_TEMPERATURE

# (logits, max_logits, temperature, top_k, top_p) -> f32[R], as `filter_thresholds_xla.filter_thresholds` says.
FilterThresholds = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


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


def smallest_kept(
    logits: jax.Array, max_logits: jax.Array, controls: SamplingControls, filter_thresholds: FilterThresholds
) -> jax.Array:
    """f32[R]: the smallest logit that passes the row's filters; -inf if it has none. The largest logit always passes.

    Args:
      logits: f32[R, V], without NaN or +inf in the rows that matter. -inf is a token of probability 0.
      max_logits: f32[R], finite; the largest logit of each row.
      controls: of R rows. Top-k and top-p are ignored in greedy rows.
      filter_thresholds: finds those of top-k and top-p.
    """
    is_drawn = controls.temperature >= GREEDY_TEMPERATURE
    temperature = jnp.maximum(controls.temperature, GREEDY_TEMPERATURE)
    top_k = jnp.where(is_drawn & (controls.top_k < logits.shape[1]), controls.top_k, 0)
    top_p = jnp.where(is_drawn, controls.top_p, 1.0)
    thresholds = filter_thresholds(logits, max_logits, temperature, top_k, top_p)
    thresholds = jnp.maximum(thresholds, max_logits + temperature * jnp.log(controls.min_p))
    return jnp.minimum(thresholds, max_logits)
