"""Attention as a model sees it: queries, keys and values of this step's tokens go to an `Attend`, which knows where older keys and values are.

The engine's `Attend` writes pages and reads them; `dense_causal_attend` is the plain one, for a sequence that is all there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.linear import Linear
from sarathi_jax.models.rope import RopeAngles, apply_rope

# (layer index, q [T, H, D], k [T, K, D], v [T, K, D], angles) -> [T, H, D]. q and k come unrotated: a kernel can rotate and write in one go.
Attend = Callable[[int, jax.Array, jax.Array, jax.Array, RopeAngles], jax.Array]


class Attention(nnx.Module):
    """Grouped-query attention. q, k and v come from one product whose weight keeps each KV head's G queries, key and value together: cut over
    KV heads, every device has whole groups."""

    def __init__(self, config: ModelConfig, layer_index: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        embed, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim
        group_shape = (config.num_kv_heads, config.num_queries_per_kv + 2, head_dim)
        has_bias = config.has_attention_bias
        self.qkv = Linear(
            (embed,), group_shape, ("embed",), ("kv_heads", None, None), rngs=rngs, dtype=dtype, has_bias=has_bias
        )
        self.out = Linear(
            (heads, head_dim), (embed,), ("heads", None), ("embed",), rngs=rngs, dtype=dtype, has_bias=has_bias
        )
        self.layer_index = layer_index
        self.heads_shape = (heads, head_dim)

    def __call__(self, x: jax.Array, angles: RopeAngles, attend: Attend) -> jax.Array:
        """x: [T, E]. Returns: [T, E]."""
        qkv = self.qkv(x)  # [T, K, G + 2, D]
        q = qkv[:, :, :-2].reshape(x.shape[0], *self.heads_shape)
        return self.out(attend(self.layer_index, q, qkv[:, :, -2], qkv[:, :, -1], angles))


def dense_causal_attend(config: ModelConfig) -> Attend:
    """Attention of one sequence to itself: token t is at position t."""

    def attend(layer_index: int, q: jax.Array, k: jax.Array, v: jax.Array, angles: RopeAngles) -> jax.Array:
        num_tokens, window = q.shape[0], config.window(layer_index)
        q, k = apply_rope(q, angles), apply_rope(k, angles)
        q = q.reshape(num_tokens, config.num_kv_heads, config.num_queries_per_kv, config.head_dim)
        scores = jnp.einsum("tkgd,skd->kgts", q, k, preferred_element_type=jnp.float32) * config.attention_scale
        distance = jnp.arange(num_tokens)[:, None] - jnp.arange(num_tokens)[None, :]  # i32[T, T], of query from key
        is_seen = (distance >= 0) & (distance < (window or num_tokens))
        weights = jax.nn.softmax(jnp.where(is_seen[None, None], scores, -jnp.inf), axis=-1).astype(v.dtype)
        out = jnp.einsum("kgts,skd->tkgd", weights, v, preferred_element_type=jnp.float32)
        return out.reshape(num_tokens, config.num_heads, config.head_dim).astype(q.dtype)

    return attend
