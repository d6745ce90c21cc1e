"""The decoder: embedding, unrolled layers, final norm, head. Takes a flat token axis and an `Attend`; knows nothing of pages, rows or requests."""

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models.attention import Attend, Attention, dense_causal_attend
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.layers import Embedding, GatedMLP, RMSNorm
from sarathi_jax.models.linear import DENSE, Linear
from sarathi_jax.models.rope import RopeAngles, rope_angles


class DecoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer_index: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.attention = Attention(config, layer_index, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.mlp = GatedMLP(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, angles: RopeAngles, attend: Attend) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), angles, attend)
        return x + self.mlp(self.mlp_norm(x))


class CausalLM(nnx.Module):
    """A decoder-only language model.

    Args:
      config: its shape.
      rngs: for random weights; under `nnx.eval_shape` none are made.
      dtype: of weights and activations. Norms, angles and logits are float32 inside.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.config = config
        self.embedding = Embedding(config, rngs=rngs, dtype=dtype)
        self.layers = nnx.List(
            [DecoderLayer(config, index, rngs=rngs, dtype=dtype) for index in range(config.num_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.head = None if config.is_head_tied else _head(config, rngs=rngs, dtype=dtype)

    def hidden_states(
        self, token_ids: jax.Array, positions: jax.Array, attend: Attend, *, max_length: int | None = None
    ) -> jax.Array:
        """Final hidden states of a step's tokens.

        Args:
          token_ids, positions: i32[T].
          attend: what looks at keys and values of each layer.
          max_length: see `rope_angles`; None is the model's own maximum.
        Returns: [T, E], normalized: what `logits` takes.
        """
        config = self.config
        angles = rope_angles(config.rope, config.head_dim, positions, max_length or config.max_position_embeddings)
        x = self.embedding(token_ids)
        for layer in self.layers:
            x = layer(x, angles, attend)
        return self.norm(x)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden: [R, E]. Returns: f32[R, V]."""
        if self.head is not None:
            return self.head(hidden)
        return DENSE.multiply(hidden, self.embedding.embedding[...].T, 1, jnp.dtype(jnp.float32))


def _head(config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> Linear:
    shape = ((config.hidden_size,), (config.vocab_size,), ("embed",), ("vocab",))
    return Linear(*shape, rngs=rngs, dtype=dtype, out_dtype=jnp.dtype(jnp.float32))


def causal_lm_logits(model: CausalLM, token_ids: jax.Array) -> jax.Array:
    """Logits of one whole sequence, without a cache. token_ids: i32[T]. Returns: f32[T, V], row t for the token after t. Batch with `jax.vmap`."""
    num_tokens = token_ids.shape[0]
    positions = jnp.arange(num_tokens, dtype=jnp.int32)
    hidden = model.hidden_states(token_ids, positions, dense_causal_attend(model.config), max_length=num_tokens)
    return model.logits(hidden)
