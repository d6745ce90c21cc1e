"""One layer's KV cache as kernels see it: pages of keys and values, and, if they are quantized, the scale of every token and head."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

INT8_MAX = 127


class LayerKV(NamedTuple):
    """k, v: [P * B, K, D], of the cache's dtype. k_scales, v_scales: f32[P * B, K] if that is int8, what its numbers are multiplied by; None otherwise."""

    k: jax.Array
    v: jax.Array
    k_scales: jax.Array | None = None
    v_scales: jax.Array | None = None

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        """Those that are there, in the order of the fields."""
        return tuple(array for array in self if array is not None)

    @property
    def is_quantized(self) -> bool:
        return self.k_scales is not None


def quantize(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f32[T, K, D] -> int8[T, K, D] and scales f32[T, K]: the largest number of a token's head becomes 127, the others the nearest whole number."""
    highest = jnp.max(jnp.abs(rows), axis=-1)
    scales = jnp.where(highest == 0, 1.0, highest / INT8_MAX)
    return jnp.floor(rows / scales[..., None] + 0.5).astype(jnp.int8), scales
