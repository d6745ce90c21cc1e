"""Rotary position embedding (Su et al. 2021), half-split as in Llama, with the ways to stretch it past the trained length."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sarathi_jax.kernels.rope_write_xla import rotate
from sarathi_jax.models.config import RopeConfig


class RopeAngles(NamedTuple):
    """cos, sin: f32[T, D / 2], of each token's position."""

    cos: jax.Array
    sin: jax.Array


def rope_angles(
    rope: RopeConfig, head_dim: int, positions: jax.Array, max_length: int, rotary_dim: int | None = None
) -> RopeAngles:
    """Angles of positions i32[T].

    rotary_dim: how much of a head is rotated; None: all. The pairs that are not come last and have angle 0: weights are read in that order.

    max_length: the longest sequence, in tokens, that these angles are for. Only `dynamic` and `longrope` look at it: their frequencies are those of a
      sequence of that length, and stay what they are while a sequence grows, so that keys in the cache keep their meaning.
    """
    rotary_dim = rotary_dim or head_dim
    frequencies, scale = rope_frequencies(rope, rotary_dim, max_length)
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)[None, :]  # [T, D / 2]
    still = ((0, 0), (0, (head_dim - rotary_dim) // 2))
    return RopeAngles(
        jnp.pad(jnp.cos(angles) * scale, still, constant_values=1.0), jnp.pad(jnp.sin(angles) * scale, still)
    )


def apply_rope(x: jax.Array, angles: RopeAngles) -> jax.Array:
    """Rotate x [T, ..., D]: element i is paired with element i + D / 2."""
    shape = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1] // 2)
    return rotate(x.astype(jnp.float32), angles.cos.reshape(shape), angles.sin.reshape(shape)).astype(x.dtype)


def rope_frequencies(rope: RopeConfig, head_dim: int, max_length: int) -> tuple[np.ndarray, float]:
    """Radians per position, f64[D / 2], and the factor that cos and sin are multiplied by."""
    match rope.kind:
        case "default":
            return _series(rope.theta, head_dim), 1.0
        case "linear":
            return _series(rope.theta, head_dim) / rope.factor, 1.0
        case "dynamic":
            return _dynamic(rope, head_dim, max_length), 1.0
        case "llama3":
            return _llama3(rope, head_dim), 1.0
        case "yarn":
            return _yarn(rope, head_dim)
        case "longrope":
            return _longrope(rope, head_dim, max_length)


def _series(theta: float, head_dim: int) -> np.ndarray:
    """In float32, as in the programs that models are trained with: at position 1,000 a frequency's last bit turns a query by 1e-4 radians."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (np.float32(1.0) / np.float32(theta) ** exponents).astype(np.float64)


def _dynamic(rope: RopeConfig, head_dim: int, max_length: int) -> np.ndarray:
    """NTK-aware: the base grows with the length, so that the longest wavelengths stretch and the shortest stay."""
    if max_length <= rope.original_max_position:
        return _series(rope.theta, head_dim)
    stretch = rope.factor * max_length / rope.original_max_position - (rope.factor - 1)
    return _series(rope.theta * stretch ** (head_dim / (head_dim - 2)), head_dim)


def _llama3(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended by how many turns fit the trained length."""
    frequencies = _series(rope.theta, head_dim)
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / rope.factor)


def _yarn(rope: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023): a linear ramp over dimensions between kept and stretched, and a temperature on the attention logits."""
    frequencies = _series(rope.theta, head_dim)

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high  # the reference implementation's guard against an empty ramp
    stretched = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
    scale = rope.attention_factor
    if scale is None:
        scale = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    return frequencies * (1 - stretched) + frequencies / rope.factor * stretched, scale


def _longrope(rope: RopeConfig, head_dim: int, max_length: int) -> tuple[np.ndarray, float]:
    """LongRoPE (Ding et al. 2024): a factor a pair, found by search: one set for sequences up to the trained length, one for longer ones."""
    factors = rope.long_factors if max_length > rope.original_max_position else rope.short_factors
    return _series(rope.theta, head_dim) / np.asarray(factors), rope.attention_factor or 1.0
