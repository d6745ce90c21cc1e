"""Rotating a step's queries and keys, and writing keys and values into their pages, in plain jax.numpy: a scatter each, in place when the pages are donated."""

import jax
import jax.numpy as jnp

from sarathi_jax.kernels.layer_kv import LayerKV, quantize


def rope_and_write_kv(
    qkv: jax.Array, cos: jax.Array, sin: jax.Array, kv: LayerKV, slot_mapping: jax.Array
) -> tuple[jax.Array, LayerKV]:
    """Rotate this step's queries and keys by their positions, and write keys and values into their pages, in place.

    Args:
      qkv: [T, K, G + 2, D]: of each KV head its G query heads, its key and its value. Tokens to skip may hold anything.
      cos, sin: f32[T, D / 2], of each token's position; element i of a head is paired with element i + D / 2.
      kv: donated: use only the returned one. Its dtype is what keys and values are rounded to.
      slot_mapping: i32[T] = page_id * B + offset; tokens to skip hold P * B, the others differ from each other.

    Returns: (queries [T, H, D] of qkv's dtype, kv with those slots replaced).
    Raises: ValueError if the shapes don't belong together.
    """
    check_shapes(qkv, cos, sin, kv, slot_mapping)
    num_tokens, num_kv_heads, parts, head_dim = qkv.shape
    rotated = rotate(qkv[:, :, :-1].astype(jnp.float32), cos[:, None, None, :], sin[:, None, None, :])
    q = rotated[:, :, :-1].astype(qkv.dtype).reshape(num_tokens, num_kv_heads * (parts - 2), head_dim)
    return q, write_kv(kv, rotated[:, :, -1].astype(qkv.dtype), qkv[:, :, -1], slot_mapping)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x: f32[..., D], cos and sin: f32[..., D / 2] that broadcast to it (Su et al. 2021, arXiv:2104.09864, half-split)."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def check_shapes(qkv: jax.Array, cos: jax.Array, sin: jax.Array, kv: LayerKV, slot_mapping: jax.Array) -> None:
    """Raises: ValueError if what `rope_and_write_kv` takes does not belong together."""
    num_tokens, num_kv_heads, parts, head_dim = qkv.shape
    expected = {
        "cos and sin": ((num_tokens, head_dim // 2), {cos.shape, sin.shape}),
        "slot_mapping": ((num_tokens,), {slot_mapping.shape}),
        "pages of k and v": ((kv.k.shape[0], num_kv_heads, head_dim), {kv.k.shape, kv.v.shape}),
    }
    for name, (shape, got) in expected.items():
        if got != {shape}:
            raise ValueError(f"{name} must be {shape} for qkv {qkv.shape}, got {', '.join(map(str, sorted(got)))}.")
    if parts < 3:
        raise ValueError(f"qkv must hold a query, a key and a value of each KV head, got {qkv.shape}.")


def write_kv(kv: LayerKV, k: jax.Array, v: jax.Array, slot_mapping: jax.Array) -> LayerKV:
    """kv with rows k, v [T, K, D] in these slots; those past the end are dropped."""
    rows = [k, v]
    if kv.is_quantized:
        (k, k_scales), (v, v_scales) = (quantize(each.astype(jnp.float32)) for each in rows)
        rows = [k, v, k_scales, v_scales]
    return LayerKV(*(_write(pages, each, slot_mapping) for pages, each in zip(kv.arrays, rows, strict=True)))


def _write(pages: jax.Array, rows: jax.Array, slot_mapping: jax.Array) -> jax.Array:
    # Several tokens may hold P * B, which are dropped: indices that are written are unique, the ones that are dropped are not, and
    # only the former are promised (a scatter drops what is out of bounds before it asks whether it is unique).
    if slot_mapping.shape[0] == 1:
        # XLA turns a scatter of one row into a select over all pages, and copies them all: give it a second row, to drop.
        slot_mapping = jnp.pad(slot_mapping, (0, 1), constant_values=pages.shape[0])
        rows = jnp.pad(rows, ((0, 1), *[(0, 0)] * (rows.ndim - 1)))
    return pages.at[slot_mapping].set(
        rows.astype(pages.dtype), mode="drop", unique_indices=True, wrap_negative_indices=False
    )
