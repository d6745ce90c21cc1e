"""The small layers: token embedding, normalization, MLPs."""

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models.config import Activation, ModelConfig
from sarathi_jax.models.linear import Linear, make_param, with_axes


class Embedding(nnx.Module):
    """Token embeddings, f[V, E]; a tied head multiplies by them too."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.embedding = make_param(rngs, (config.vocab_size, config.hidden_size), ("vocab", "embed"), dtype)

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """token_ids: i32[...], inside the vocabulary. Returns: [..., E]."""
        return self.embedding[...].at[token_ids].get(mode="clip")


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32 (Zhang and Sennrich 2019). has_unit: times 1 + scale, all of it in float32, as Gemma has it."""

    def __init__(self, size: int, eps: float, *, dtype: jnp.dtype, has_unit: bool = False) -> None:
        self.scale = with_axes(jnp.zeros(size, dtype) if has_unit else jnp.ones(size, dtype), ("norm",))
        self.eps = eps
        self.has_unit = has_unit

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., size]. Returns: the same shape."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + self.scale.shape)
        if self.has_unit:
            return (normed * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
        return scale * normed.astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / std(x) * scale + bias, computed in float32 (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float, *, dtype: jnp.dtype) -> None:
        self.scale = with_axes(jnp.ones(size, dtype), ("norm",))
        self.bias = with_axes(jnp.zeros(size, dtype), ("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., size]. Returns: the same shape."""
        x32 = x.astype(jnp.float32)
        centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = centered * jax.lax.rsqrt(jnp.mean(centered * centered, axis=-1, keepdims=True) + self.eps)
        shape = (1,) * (x.ndim - 1) + self.scale.shape
        scale, bias = (each[...].astype(jnp.float32).reshape(shape) for each in (self.scale, self.bias))
        return (normed * scale + bias).astype(x.dtype)


def make_norm(config: ModelConfig, size: int | None = None, *, dtype: jnp.dtype) -> RMSNorm | LayerNorm:
    """The model's kind of norm, over `size` elements; None: over the hidden size."""
    size = config.hidden_size if size is None else size
    if config.norm == "layer":
        return LayerNorm(size, config.norm_eps, dtype=dtype)
    return RMSNorm(size, config.norm_eps, dtype=dtype, has_unit=config.norm == "rms_plus_one")


def activate(kind: Activation, x: jax.Array) -> jax.Array:
    """The model's activation function, element by element."""
    match kind:
        case "silu":
            return jax.nn.silu(x)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)), gate and up in one product (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        embed, mlp, has_bias = config.hidden_size, config.intermediate_size, config.has_mlp_bias
        self.gate_up = Linear((embed,), (2, mlp), ("embed",), (None, "mlp"), rngs=rngs, dtype=dtype, has_bias=has_bias)
        self.down = Linear((mlp,), (embed,), ("mlp",), ("embed",), rngs=rngs, dtype=dtype, has_bias=has_bias)
        self.activation: Activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [T, E]. Returns: [T, E]."""
        gate_up = self.gate_up(x)  # [T, 2, F]
        return self.down(activate(self.activation, gate_up[:, 0]) * gate_up[:, 1])


class PlainMLP(nnx.Module):
    """down(activation(up(x))): no gate."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        embed, mlp, has_bias = config.hidden_size, config.intermediate_size, config.has_mlp_bias
        self.up = Linear((embed,), (mlp,), ("embed",), ("mlp",), rngs=rngs, dtype=dtype, has_bias=has_bias)
        self.down = Linear((mlp,), (embed,), ("mlp",), ("embed",), rngs=rngs, dtype=dtype, has_bias=has_bias)
        self.activation: Activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [T, E]. Returns: [T, E]."""
        return self.down(activate(self.activation, self.up(x)))
