"""Writing a step's keys and values into their pages, in plain jax.numpy: one scatter each, in place when the pages are donated."""

import jax
import jax.numpy as jnp


def write_kv(
    k_pages: jax.Array, v_pages: jax.Array, k: jax.Array, v: jax.Array, slot_mapping: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Write this step's keys and values into their pages, in place.

    Args:
      k_pages, v_pages: [P * B, K, D]. Donated: use only the returned arrays.
      k, v: [T, K, D], rounded to the pages' dtype. Tokens to skip may hold anything.
      slot_mapping: i32[T] = page_id * B + offset; tokens to skip hold P * B, the others differ from each other.

    Returns: (k_pages, v_pages) with those slots replaced.
    Raises: ValueError if k or v are not tokens of the pages' heads, one slot each.
    """
    expected = (slot_mapping.shape[0], *k_pages.shape[1:])
    if not k.shape == v.shape == expected:
        raise ValueError(f"k and v must be {expected}, one row a slot, as the pages are: got k {k.shape}, v {v.shape}.")
    return _write(k_pages, k, slot_mapping), _write(v_pages, v, slot_mapping)


def _write(pages: jax.Array, rows: jax.Array, slot_mapping: jax.Array) -> jax.Array:
    # Several tokens may hold P * B, which are dropped: indices that are written are unique, the ones that are dropped are not, and
    # only the former are promised (a scatter drops what is out of bounds before it asks whether it is unique).
    if slot_mapping.shape[0] == 1:
        # XLA turns a scatter of one row into a select over all pages, and copies them all: give it a second row, to drop.
        slot_mapping = jnp.pad(slot_mapping, (0, 1), constant_values=pages.shape[0])
        rows = jnp.pad(rows, ((0, 1), (0, 0), (0, 0)))
    return pages.at[slot_mapping].set(
        rows.astype(pages.dtype), mode="drop", unique_indices=True, wrap_negative_indices=False
    )
