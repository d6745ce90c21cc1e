"""Attention as a model sees it: queries, keys and values of this step's tokens go to an `Attend`, which knows where older keys and values are.

The engine's `Attend` writes pages and reads them; `dense_causal_attend` is the plain one, for a sequence that is all there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.layers import make_norm
from sarathi_jax.models.linear import Linear
from sarathi_jax.models.rope import RopeAngles, apply_rope

# (layer index, qkv [T, K, G + 2, D], angles) -> [T, H, D]. Queries, keys and values come together and unrotated, as the product left them: a kernel
# takes them apart, rotates and writes in one go.
Attend = Callable[[int, jax.Array, RopeAngles], jax.Array]


class Attention(nnx.Module):
    """Grouped-query attention. q, k and v come from one product whose weight keeps each KV head's G queries, key and value together: cut over
    KV heads, every device has whole groups."""

    def __init__(self, config: ModelConfig, layer_index: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        embed, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim
        group_shape = (config.num_kv_heads, config.num_queries_per_kv + 2, head_dim)
        qkv_axes, out_axes = ("kv_heads", None, None), ("heads", None)
        self.qkv = Linear(
            (embed,), group_shape, ("embed",), qkv_axes, rngs=rngs, dtype=dtype, has_bias=config.has_qkv_bias
        )
        self.out = Linear(
            (heads, head_dim), (embed,), out_axes, ("embed",), rngs=rngs, dtype=dtype, has_bias=config.has_out_bias
        )
        self.q_norm = make_norm(config, head_dim, dtype=dtype) if config.has_qk_norm else None
        self.k_norm = make_norm(config, head_dim, dtype=dtype) if config.has_qk_norm else None
        self.layer_index = layer_index

    def __call__(self, x: jax.Array, angles: RopeAngles, attend: Attend) -> jax.Array:
        """x: [T, E]. Returns: [T, E]."""
        qkv = self.qkv(x)  # [T, K, G + 2, D]
        if self.q_norm is not None and self.k_norm is not None:
            normed = self.q_norm(qkv[:, :, :-2]), self.k_norm(qkv[:, :, -2:-1])
            qkv = jnp.concatenate([*normed, qkv[:, :, -1:]], axis=2)
        return self.out(attend(self.layer_index, qkv, angles))


def dense_causal_attend(config: ModelConfig) -> Attend:
    """Attention of one sequence to itself: token t is at position t."""

    def attend(layer_index: int, qkv: jax.Array, angles: RopeAngles) -> jax.Array:
        num_tokens, window = qkv.shape[0], config.window(layer_index)
        turned = apply_rope(qkv[:, :, :-1], angles)
        q, k, v = turned[:, :, :-1], turned[:, :, -1], qkv[:, :, -1]  # [T, K, G, D], [T, K, D], [T, K, D]
        scores = jnp.einsum("tkgd,skd->kgts", q, k, preferred_element_type=jnp.float32) * config.attention_scale
        if config.attention_soft_cap is not None:
            scores = config.attention_soft_cap * jnp.tanh(scores / config.attention_soft_cap)
        distance = jnp.arange(num_tokens)[:, None] - jnp.arange(num_tokens)[None, :]  # i32[T, T], of query from key
        is_seen = (distance >= 0) & (distance < (window or num_tokens))
        weights = jax.nn.softmax(jnp.where(is_seen[None, None], scores, -jnp.inf), axis=-1).astype(v.dtype)
        out = jnp.einsum("kgts,skd->tkgd", weights, v, preferred_element_type=jnp.float32)
        return out.reshape(num_tokens, config.num_heads, config.head_dim).astype(qkv.dtype)

    return attend
