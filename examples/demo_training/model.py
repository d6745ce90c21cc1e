"""A Mistral decoder of its own for training: packed windows, and masks between the documents in them.

`sarathi_jax.models` is not used here, on purpose: it is written for a server's steps, has no gradients to care about, and
this second definition makes the demo model's accuracy in the engine a check of the engine's own model.
Letters: N windows, W tokens in a window, E model, H query heads, K kv heads, G = H / K, D head dim, F mlp, V vocab.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sarathi_jax.models.config import ModelConfig


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, weight: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """x f32[N, W, in] times weight f32[in, out], multiplied in `dtype`; all else stays float32.

    bfloat16 is twice as fast on a CPU that has AVX512-BF16, if the gradient's products are written as below: derived by
    jax, their conversions are fused into the products, and XLA then leaves its fast path (ten times slower, measured)."""
    return (x.astype(dtype) @ weight.astype(dtype)).astype(jnp.float32)


def _product_forward(
    x: jax.Array, weight: jax.Array, dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, weight, dtype), (x, weight)


def _product_backward(
    dtype: jax.typing.DTypeLike, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight, gradient = jax.lax.optimization_barrier([each.astype(dtype) for each in (*kept, gradient)])
    to_x = jnp.einsum("nwo,io->nwi", gradient, weight)
    to_weight = jnp.einsum("nwi,nwo->io", x, gradient)
    return to_x.astype(jnp.float32), to_weight.astype(jnp.float32)


product.defvjp(_product_forward, _product_backward)


def rms_norm(x: jax.Array, weight: nnx.Param, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight[...]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of x f32[N, heads, W, D]; the pair of dimension i is i + D/2. cos, sin: f32[N, 1, W, D/2]."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Layer(nnx.Module):
    """One decoder layer: attention and SwiGLU, each with its norm before it and its residual around it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype: jax.typing.DTypeLike = jnp.float32
        E, F, D = config.hidden_size, config.intermediate_size, config.head_dim
        H, K = config.num_heads, config.num_kv_heads

        def matrix(num_in: int, num_out: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (num_in, num_out)) * num_in**-0.5)

        self.attention_norm = nnx.Param(jnp.ones(E))
        self.qkv = matrix(E, (H + 2 * K) * D)
        self.o = nnx.Param(jnp.zeros((H * D, E)))  # zero: at the start a layer does nothing
        self.mlp_norm = nnx.Param(jnp.ones(E))
        self.gate_up = matrix(E, 2 * F)
        self.down = nnx.Param(jnp.zeros((F, E)))

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array, mask: jax.Array) -> jax.Array:
        """x f32[N, W, E] -> f32[N, W, E]; mask bool[N, W, W], queries before keys."""
        x = x + self.attention(rms_norm(x, self.attention_norm, self.config.norm_eps), cos, sin, mask)
        return x + self.mlp(rms_norm(x, self.mlp_norm, self.config.norm_eps))

    def mlp(self, x: jax.Array) -> jax.Array:
        gate, up = jnp.split(product(x, self.gate_up[...], self.dtype), 2, axis=-1)
        return product(jax.nn.silu(gate) * up, self.down[...], self.dtype)

    def attention(self, x: jax.Array, cos: jax.Array, sin: jax.Array, mask: jax.Array) -> jax.Array:
        H, K, D = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        N, W, _ = x.shape
        qkv: Any = product(x, self.qkv[...], self.dtype)
        heads = qkv.reshape(N, W, H + 2 * K, D).swapaxes(1, 2)  # [N, heads, W, D]
        q = rotate(heads[:, :H], cos, sin) * self.config.attention_scale
        k = jnp.repeat(rotate(heads[:, H : H + K], cos, sin), H // K, axis=1)
        v = jnp.repeat(heads[:, H + K :], H // K, axis=1)
        scores = jnp.where(mask[:, None], q @ k.swapaxes(2, 3), -1e30)  # [N, H, W, W]
        out = (jax.nn.softmax(scores, axis=-1) @ v).swapaxes(1, 2).reshape(N, W, H * D)
        return product(out, self.o[...], self.dtype)


class Mistral(nnx.Module):
    """The decoder; its head is the transposed embedding."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype: jax.typing.DTypeLike = jnp.float32
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.hidden_size)) * 0.05)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.num_layers)])
        self.norm = nnx.Param(jnp.ones(config.hidden_size))

    def __call__(self, token_ids: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """token_ids, positions i32[N, W], mask bool[N, W, W] -> hidden states f32[N, W, E]."""
        half = self.config.head_dim // 2
        inverse_wavelengths = self.config.rope.theta ** (-jnp.arange(half) / half)
        angles = positions[:, None, :, None] * inverse_wavelengths
        x = self.embedding[...][token_ids]
        for layer in self.layers:
            x = layer(x, jnp.cos(angles), jnp.sin(angles), mask)
        return rms_norm(x, self.norm, self.config.norm_eps)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return product(hidden, self.embedding[...].T, self.dtype)

    def set_product_dtype(self, dtype: jax.typing.DTypeLike) -> None:
        self.dtype = dtype
        for layer in self.layers:
            layer.dtype = dtype


def hugging_face_tensors(model: Mistral) -> Iterator[tuple[str, np.ndarray]]:
    """The weights under the names, and in the [out, in] layout, of a Hugging Face Mistral checkpoint."""
    config = model.config
    yield "model.embed_tokens.weight", np.asarray(model.embedding[...])
    yield "model.norm.weight", np.asarray(model.norm[...])
    q_end = config.num_heads * config.head_dim
    k_end = q_end + config.num_kv_heads * config.head_dim
    for index, layer in enumerate(model.layers):
        qkv, gate_up = np.asarray(layer.qkv[...]).T, np.asarray(layer.gate_up[...]).T
        named = {
            "input_layernorm": layer.attention_norm[...],
            "self_attn.q_proj": qkv[:q_end],
            "self_attn.k_proj": qkv[q_end:k_end],
            "self_attn.v_proj": qkv[k_end:],
            "self_attn.o_proj": layer.o[...].T,
            "post_attention_layernorm": layer.mlp_norm[...],
            "mlp.gate_proj": gate_up[: config.intermediate_size],
            "mlp.up_proj": gate_up[config.intermediate_size :],
            "mlp.down_proj": layer.down[...].T,
        }
        for name, value in named.items():
            yield f"model.layers.{index}.{name}.weight", np.ascontiguousarray(value)
