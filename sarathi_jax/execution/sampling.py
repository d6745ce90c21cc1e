"""Draws one token per row on the device. A row's token depends on its logits, its options, its seed and its position, and on nothing else.

The draw is a race in two stages, block then token: each runner needs an exponentially distributed time over its weight, and the first one wins. Where logits differ
in their last bits, as they do from one batch to another, other tokens win about as seldom as the probabilities differ; a draw from cumulative weights would be off
by all that adds up before the token (decision 027). Two stages, because a random number per vocabulary entry costs more than all the rest on a CPU. Knows nothing
of requests; the filters are in `sampling_filters`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sarathi_jax.execution.logit_controls import Penalties
from sarathi_jax.execution.sampling_filters import FilterThresholds, SamplingControls, smallest_kept
from sarathi_jax.execution.sampling_row import SamplingColumn
from sarathi_jax.kernels.filter_thresholds_xla import filter_thresholds as xla_filter_thresholds
from sarathi_jax.kernels.filter_thresholds_xla import kept_weights
from sarathi_jax.sampling_params import GREEDY_TEMPERATURE

_BLOCK = 128


class Sampled(NamedTuple):
    """token_ids: i32[R]. is_finite: bool[R], False where the logits hold NaN, +inf or nothing but -inf; the token is then meaningless."""

    token_ids: jax.Array
    is_finite: jax.Array


def greedy(logits: jax.Array) -> Sampled:
    """The largest logit of each row of f32[R, V]; the lowest id where several are equal."""
    return _greedy(logits, _row_max(logits))


def sample(
    logits: jax.Array, controls: SamplingControls, filter_thresholds: FilterThresholds = xla_filter_thresholds
) -> Sampled:
    """One draw per row of f32[R, V]; rows whose temperature is below GREEDY_TEMPERATURE are greedy.

    filter_thresholds: what finds the thresholds of top-k and top-p.
    """
    max_logits = _row_max(logits)
    most_likely = _greedy(logits, max_logits)
    drawn = _draw(logits, jnp.where(most_likely.is_finite, max_logits, 0.0), controls, filter_thresholds)
    is_drawn = most_likely.is_finite & (controls.temperature >= GREEDY_TEMPERATURE)
    return Sampled(jnp.where(is_drawn, drawn, most_likely.token_ids), most_likely.is_finite)


def unpack_sampling_rows(rows: jax.Array, positions: jax.Array) -> tuple[SamplingControls, Penalties]:
    """The arrays of `pack_sampling_row`'s rows.

    Args:
      rows: i32[R, NUM_SAMPLING_COLUMNS].
      positions: i32[R], of the tokens that will be drawn.
    """

    def floats(column: SamplingColumn) -> jax.Array:
        return lax.bitcast_convert_type(rows[:, column], jnp.float32)

    seed = lax.bitcast_convert_type(rows[:, SamplingColumn.SEED_LOW : SamplingColumn.SEED_HIGH + 1], jnp.uint32)
    controls = SamplingControls(
        temperature=floats(SamplingColumn.TEMPERATURE),
        top_k=rows[:, SamplingColumn.TOP_K],
        top_p=floats(SamplingColumn.TOP_P),
        min_p=floats(SamplingColumn.MIN_P),
        seed=seed,
        position=positions,
    )
    penalties = Penalties(
        floats(SamplingColumn.REPETITION_PENALTY),
        floats(SamplingColumn.PRESENCE_PENALTY),
        floats(SamplingColumn.FREQUENCY_PENALTY),
    )
    return controls, penalties


def _row_max(logits: jax.Array) -> jax.Array:
    """f32[R]; +inf where there is a NaN, which the maximum of a row alone may pass over: on a CPU it does."""
    return jnp.max(jnp.where(jnp.isnan(logits), jnp.inf, logits), axis=1)


def _greedy(logits: jax.Array, max_logits: jax.Array) -> Sampled:
    token_ids = jnp.minimum(_first(logits == max_logits[:, None]), logits.shape[1] - 1)
    return Sampled(token_ids, jnp.isfinite(max_logits))


def _first(mask: jax.Array) -> jax.Array:
    """i32[R]: the first true column of bool[R, N], N if none. Unlike argmax, it is a plain reduction, 30 times as fast on a CPU."""
    num_columns = mask.shape[1]
    columns = jnp.arange(num_columns, dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(mask, columns, num_columns), axis=1)


def _times(controls: SamplingControls, num_times: int) -> jax.Array:
    """f32[R, num_times]: exponentially distributed, from fold_in(key(seed), position)."""

    def row_bits(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed[::-1], impl="threefry2x32")
        return jax.random.bits(jax.random.fold_in(key, position), (num_times,))

    return times_of(jax.vmap(row_bits)(controls.seed, controls.position))


def times_of(bits: jax.Array) -> jax.Array:
    """u32 of random bits as exponentially distributed f32, from 1e-10 to 17: all finite, so that a weight is never lost.

    Short ones have their full precision: what is improbable must win as seldom as it should.
    """
    uniforms = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    return -jnp.log1p(-jnp.minimum(uniforms, 1.0 - 2.0**-24))


def _draw(
    logits: jax.Array, max_logits: jax.Array, controls: SamplingControls, filter_thresholds: FilterThresholds
) -> jax.Array:
    """i32[R]: a column of f32[R, V] with the probability that its logit has after temperature and filters."""
    num_rows, vocab_size = logits.shape
    num_blocks = -(-vocab_size // _BLOCK)
    thresholds = smallest_kept(logits, max_logits, controls, filter_thresholds)
    times = _times(controls, num_blocks + _BLOCK)

    def weights_of(logits: jax.Array) -> jax.Array:
        return kept_weights(logits, max_logits, controls.temperature, thresholds)

    weights = jnp.pad(weights_of(logits), ((0, 0), (0, num_blocks * _BLOCK - vocab_size)))
    blocks = jnp.sum(weights.reshape(num_rows, num_blocks, _BLOCK), axis=2)
    columns = race(blocks, times[:, :num_blocks])[:, None] * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)[None, :]
    # The logits are read again, not the weights, which then need not be stored.
    inside = jnp.take_along_axis(logits, columns, axis=1, mode="fill", fill_value=-jnp.inf)
    place = race(weights_of(inside), times[:, num_blocks:])
    return jnp.minimum(jnp.take_along_axis(columns, place[:, None], axis=1)[:, 0], vocab_size - 1)


def race(weights: jax.Array, times: jax.Array) -> jax.Array:
    """i32[R]: the column of f32[R, N] that is there first, if column i needs times[i] / weights[i]; never one of weight 0 where others have more.

    With exponential times, column i wins with the probability weights[i] / sum(weights).
    """
    speeds = weights / times
    fastest = jnp.max(speeds, axis=1, keepdims=True)
    return jnp.minimum(_first(speeds == fastest), weights.shape[1] - 1)
