"""Log-probabilities of drawn and most probable tokens under the model's own distribution: before penalties, bias, temperature and filters."""

import jax
import jax.numpy as jnp
from jax import lax

from sarathi_jax.sampling_params import MAX_TOP_LOGPROBS

_BLOCK = 128


def top_logprobs(
    logits: jax.Array, token_ids: jax.Array, num_top: int = MAX_TOP_LOGPROBS
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Log-probability and rank of one token per row, and the row's most probable tokens.

    Args:
      logits: f32[R, V], as the model gave them.
      token_ids: i32[R].
      num_top: static, at least 1.
    Returns:
      logprob: f32[R]. rank: i32[R], 1 + the number of tokens with a larger logit.
      top_ids: i32[R, num_top], by falling logit, lower id first among equals; V past the vocabulary.
      top_values: f32[R, num_top], their log-probabilities; -inf past the vocabulary.
    """
    # Relative to the largest logit, so that nothing is lost to the logits' own size.
    highest = jnp.max(logits, axis=1, keepdims=True)
    log_mass = jnp.log(jnp.sum(jnp.exp(logits - highest), axis=1, keepdims=True))
    chosen = jnp.take_along_axis(logits, token_ids[:, None], axis=1, mode="clip")
    rank = 1 + jnp.sum((logits > chosen).astype(jnp.int32), axis=1)
    top_values, top_ids = _top(logits, num_top)
    return (chosen - highest - log_mass)[:, 0], rank, top_ids, top_values - highest - log_mass


def _top(logits: jax.Array, num_top: int) -> tuple[jax.Array, jax.Array]:
    """Values f32[R, num_top] and ids i32[R, num_top] of the largest logits.

    The num_top blocks with the largest maxima hold the num_top largest logits, so only these blocks are searched: one pass over the
    vocabulary instead of a selection over it. Blocks are taken in the order of their ids, which keeps the lower id first among equals.
    """
    num_rows, vocab_size = logits.shape
    num_blocks = -(-max(vocab_size, num_top) // _BLOCK)
    padding = ((0, 0), (0, num_blocks * _BLOCK - vocab_size))
    blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(num_rows, num_blocks, _BLOCK)
    candidates, ids = blocks.reshape(num_rows, -1), None
    if num_blocks > num_top:
        chosen = lax.sort(lax.top_k(jnp.max(blocks, axis=2), num_top)[1])  # i32[R, num_top]
        candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(num_rows, -1)
        ids = (chosen[:, :, None] * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)[None, None, :]).reshape(num_rows, -1)
    values, columns = lax.top_k(candidates, num_top)
    top_ids = columns if ids is None else jnp.take_along_axis(ids, columns, axis=1)
    return values, jnp.minimum(top_ids, vocab_size)
