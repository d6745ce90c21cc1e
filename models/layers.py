"""The small layers: token embedding, RMS normalization, gated MLP."""

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.linear import Linear, make_param, with_axes


class Embedding(nnx.Module):
    """Token embeddings, f[V, E]; a tied head multiplies by them too."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.embedding = make_param(rngs, (config.vocab_size, config.hidden_size), ("vocab", "embed"), dtype)

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """token_ids: i32[...], inside the vocabulary. Returns: [..., E]."""
        return self.embedding[...].at[token_ids].get(mode="clip")


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float, *, dtype: jnp.dtype) -> None:
        self.scale = with_axes(jnp.ones(size, dtype), ("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + self.scale.shape)
        return scale * normed.astype(x.dtype)


class GatedMLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), gate and up in one product (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        embed, mlp, has_bias = config.hidden_size, config.intermediate_size, config.has_mlp_bias
        self.gate_up = Linear((embed,), (2, mlp), ("embed",), (None, "mlp"), rngs=rngs, dtype=dtype, has_bias=has_bias)
        self.down = Linear((mlp,), (embed,), ("mlp",), ("embed",), rngs=rngs, dtype=dtype, has_bias=has_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate_up = self.gate_up(x)  # [T, 2, F]
        return self.down(jax.nn.silu(gate_up[:, 0]) * gate_up[:, 1])
