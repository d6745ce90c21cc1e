"""Copying KV pages, in plain jax.numpy: for samples that go on from one prompt, and for moving pages together."""

import jax
import jax.numpy as jnp

from sarathi_jax.kernels.layer_kv import LayerKV


def copy_pages(kv: LayerKV, sources: jax.Array, targets: jax.Array, *, page_size: int) -> LayerKV:
    """Copy whole pages of one layer onto others, in place.

    Args:
      kv: donated: use only the returned one.
      sources, targets: i32[n] page ids; targets differ from each other, and none of them is a source. A pair whose target is P is skipped.
      page_size: B.

    Returns: kv with page targets[i] as page sources[i] is.
    """
    return LayerKV(*(_copy(array, sources, targets, page_size) for array in kv.arrays))


def _copy(array: jax.Array, sources: jax.Array, targets: jax.Array, page_size: int) -> jax.Array:
    pages = array.reshape(array.shape[0] // page_size, -1)  # [P, B * K * D]
    if targets.shape[0] == 1:  # as in `rope_write_xla`: a scatter of one row would copy all pages
        sources, targets = jnp.pad(sources, (0, 1)), jnp.pad(targets, (0, 1), constant_values=pages.shape[0])
    copied = pages.at[sources].get(mode="clip")
    return pages.at[targets].set(copied, mode="drop", wrap_negative_indices=False).reshape(array.shape)
