"""What a request changes in its logits before temperature: bias, allowed ids, the ban on stopping early, penalties.

Every operation is skipped at run time when no row of the step asks for it, and leaves the bits of a row that does not ask as they were.
NaN and +inf are never masked away: a broken row stays visible to the sampler.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_ALL_ALLOWED = 0xFFFFFFFF
# Marks a token of the prompt in the array of counts; a sequence has fewer tokens than this.
_IN_PROMPT = 1 << 30


class Penalties(NamedTuple):
    """Each f32[R]; 1, 0 and 0 change nothing."""

    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array


class LogitControls(NamedTuple):
    """One entry per row. Ids equal to V are padding.

    repetition_penalty, presence_penalty, frequency_penalty: f32[R], as in Penalties.
    history: i32[R, L], the tokens of prompt and output in order; valid before lens.
    prompt_lens, lens: i32[R], tokens of the prompt, and all tokens known so far.
    bias_ids: i32[R, M], distinct but for padding; bias_values: f32[R, M].
    allowed_bits: u32[R, ceil(V / 32)], token i is bit i % 32 of word i // 32; all ones (to the end of the last word) when not restricted.
    stop_ids: i32[R, N]; banned where is_stop_banned, bool[R].
    """

    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    history: jax.Array
    prompt_lens: jax.Array
    lens: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    allowed_bits: jax.Array
    stop_ids: jax.Array
    is_stop_banned: jax.Array


def apply(logits: jax.Array, controls: LogitControls) -> jax.Array:
    """The logits f32[R, V] after bias, allowed ids, minimum length and penalties, in this order; -inf is a token that cannot be drawn."""
    vocab_size = logits.shape[1]
    has_penalty = (
        (controls.repetition_penalty != 1.0) | (controls.presence_penalty != 0.0) | (controls.frequency_penalty != 0.0)
    )
    steps = (
        (jnp.any(controls.bias_ids < vocab_size), _add_bias),
        (jnp.any(controls.allowed_bits != jnp.uint32(_ALL_ALLOWED)), _mask_to_allowed),
        (jnp.any(controls.is_stop_banned), _ban_stops),
        (jnp.any(has_penalty), lambda x, c: jnp.where(has_penalty[:, None], _penalise(x, c), x)),
    )

    def take_steps(logits: jax.Array) -> jax.Array:
        for is_needed, step in steps:
            logits = lax.cond(is_needed, step, lambda x, _: x, logits, controls)
        return logits

    is_any_needed = steps[0][0] | steps[1][0] | steps[2][0] | steps[3][0]
    return lax.cond(is_any_needed, take_steps, lambda x: x, logits)


def _rows(ids: jax.Array) -> jax.Array:
    return jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None]


def _add_bias(logits: jax.Array, controls: LogitControls) -> jax.Array:
    return logits.at[_rows(controls.bias_ids), controls.bias_ids].add(controls.bias_values, mode="drop")


def _mask_to_allowed(logits: jax.Array, controls: LogitControls) -> jax.Array:
    bits = controls.allowed_bits[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]  # u32[R, W, 32]
    is_allowed = (bits & jnp.uint32(1)).reshape(logits.shape[0], -1)[:, : logits.shape[1]] != 0
    # Adding -inf to NaN or +inf gives NaN, where storing -inf would hide it.
    return jnp.where(is_allowed, logits, logits - jnp.inf)


def _ban_stops(logits: jax.Array, controls: LogitControls) -> jax.Array:
    ids = jnp.where(controls.is_stop_banned[:, None], controls.stop_ids, logits.shape[1])
    return logits.at[_rows(ids), ids].add(-jnp.inf, mode="drop")


def _penalise(logits: jax.Array, controls: LogitControls) -> jax.Array:
    counts = _token_counts(controls, logits.shape[1])
    num_outputs = (counts & (_IN_PROMPT - 1)).astype(jnp.float32)
    repetition = controls.repetition_penalty[:, None]
    logits = jnp.where(counts != 0, jnp.where(logits > 0, logits / repetition, logits * repetition), logits)
    logits = logits - controls.frequency_penalty[:, None] * num_outputs
    return logits - jnp.where(num_outputs > 0, controls.presence_penalty[:, None], 0.0)


def _token_counts(controls: LogitControls, vocab_size: int) -> jax.Array:
    """i32[R, V]: how often each token is in the output, plus _IN_PROMPT if it is in the prompt. One array serves both penalties."""
    history = controls.history
    rows, positions = _rows(history), jnp.arange(history.shape[1], dtype=jnp.int32)[None, :]
    is_prompt = positions < jnp.minimum(controls.prompt_lens, controls.lens)[:, None]
    is_output = ~is_prompt & (positions < controls.lens[:, None])
    counts = jnp.zeros((history.shape[0], vocab_size), jnp.int32)
    counts = counts.at[rows, jnp.where(is_prompt, history, vocab_size)].set(_IN_PROMPT, mode="drop")
    return counts.at[rows, jnp.where(is_output, history, vocab_size)].add(1, mode="drop")
