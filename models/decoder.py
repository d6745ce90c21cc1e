"""The decoder: embedding, unrolled layers, final norm, head. Takes a flat token axis and an `Attend`; knows nothing of pages, rows or requests.

Families differ in their layers: `CausalLM` is given the class of them. It runs in three parts, `embed`, `run_layers` and `finish`, so that the stages of a
pipeline can share the layers among them.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models.attention import Attend, Attention, dense_causal_attend
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.layers import Embedding, make_norm
from sarathi_jax.models.linear import DENSE, Linear
from sarathi_jax.models.moe import make_mlp
from sarathi_jax.models.rope import RopeAngles, rope_angles

# Where the residual stream [T, E] is kept between layers: a sharding rule's affair, and nothing at all on one device.
Constrain = Callable[[jax.Array], jax.Array]


def unconstrained(x: jax.Array) -> jax.Array:
    return x


class Layer(Protocol):
    """One layer of a decoder."""

    def __call__(self, x: jax.Array, angles: RopeAngles, attend: Attend, constrain: Constrain) -> jax.Array:
        """x: [T, E]. Returns: [T, E]."""
        ...


class MakeLayer(Protocol):
    """What makes a family's layer of an index."""

    def __call__(self, config: ModelConfig, layer_index: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> nnx.Module: ...


class DecoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer_index: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.attention_norm = make_norm(config, dtype=dtype)
        self.attention = Attention(config, layer_index, rngs=rngs, dtype=dtype)
        self.mlp_norm = make_norm(config, dtype=dtype)
        self.mlp = make_mlp(config, layer_index, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, angles: RopeAngles, attend: Attend, constrain: Constrain) -> jax.Array:
        x = constrain(x + self.attention(self.attention_norm(x), angles, attend))
        return constrain(x + self.mlp(self.mlp_norm(x)))


class CausalLM(nnx.Module):
    """A decoder-only language model.

    Args:
      config: its shape.
      make_layer: the family's layers.
      rngs: for random weights; under `nnx.eval_shape` none are made.
      dtype: of weights and activations. Norms, angles and logits are float32 inside.
    """

    def __init__(
        self, config: ModelConfig, make_layer: MakeLayer = DecoderLayer, *, rngs: nnx.Rngs, dtype: jnp.dtype
    ) -> None:
        self.config = config
        self.embedding = Embedding(config, rngs=rngs, dtype=dtype)
        self.layers = nnx.List(
            [make_layer(config, index, rngs=rngs, dtype=dtype) for index in range(config.num_layers)]
        )
        self.norm = make_norm(config, dtype=dtype)
        self.head = None if config.is_head_tied else _head(config, rngs=rngs, dtype=dtype)

    def embed(self, token_ids: jax.Array) -> jax.Array:
        """token_ids: i32[T]. Returns: [T, E], what the first layer takes."""
        x = self.embedding(token_ids)
        scale = self.config.embedding_scale
        return x if scale is None else x * jnp.asarray(scale, x.dtype)

    def run_layers(
        self,
        x: jax.Array,
        positions: jax.Array,
        attend: Attend,
        constrain: Constrain = unconstrained,
        *,
        max_length: int | None = None,
    ) -> jax.Array:
        """All layers, in their order.

        Args:
          x: [T, E].
          positions: i32[T].
          attend: what looks at keys and values of each layer.
          constrain: see `Constrain`.
          max_length: see `rope_angles`; None is the model's own maximum.
        Returns: [T, E].
        """
        config, length = self.config, max_length or self.config.max_position_embeddings
        ropes = [config.layer_rope(index) for index in range(config.num_layers)]
        angles = {
            rope: rope_angles(rope, config.head_dim, positions, length, config.rotary_dim)
            for rope in dict.fromkeys(ropes)
        }
        x = constrain(x)
        for layer, rope in zip(self.layers, ropes, strict=True):
            x = layer(x, angles[rope], attend, constrain)
        return x

    def finish(self, x: jax.Array) -> jax.Array:
        """The last layer's output, [R, E], normalized: what `logits` takes."""
        return self.norm(x)

    def hidden_states(
        self,
        token_ids: jax.Array,
        positions: jax.Array,
        attend: Attend,
        constrain: Constrain = unconstrained,
        *,
        max_length: int | None = None,
    ) -> jax.Array:
        """Final hidden states [T, E] of a step's tokens, normalized: `embed`, `run_layers` and `finish`. Args: as theirs."""
        return self.finish(self.run_layers(self.embed(token_ids), positions, attend, constrain, max_length=max_length))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden: [R, E]. Returns: f32[R, V]."""
        if self.head is not None:
            logits = self.head(hidden)
        else:
            logits = DENSE.multiply(hidden, self.embedding.embedding[...].T, 1, jnp.dtype(jnp.float32))
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def _head(config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> Linear:
    shape = ((config.hidden_size,), (config.vocab_size,), ("embed",), ("vocab",))
    return Linear(*shape, rngs=rngs, dtype=dtype, out_dtype=jnp.dtype(jnp.float32))


def causal_lm_logits(model: CausalLM, token_ids: jax.Array) -> jax.Array:
    """Logits of one whole sequence, without a cache. token_ids: i32[T]. Returns: f32[T, V], row t for the token after t. Batch with `jax.vmap`."""
    num_tokens = token_ids.shape[0]
    positions = jnp.arange(num_tokens, dtype=jnp.int32)
    hidden = model.hidden_states(token_ids, positions, dense_causal_attend(model.config), max_length=num_tokens)
    return model.logits(hidden)
