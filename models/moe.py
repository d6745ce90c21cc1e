"""A mixture of experts in the place of an MLP (Shazeer et al. 2017): a router gives each token to a few experts.

It is computed as one wide MLP: every expert that a device holds sees every token, and what the router did not choose is multiplied by zero. That is two plain
products, which the partitioner cuts over experts and over their width without being told, for one all-reduce; no token's result depends on another's, nor on
padding. `docs/decisions/018-experts-as-one-mlp.md` has what it costs, and what sorting tokens by expert would.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from sarathi_jax.models.config import Activation, ModelConfig, MoEConfig
from sarathi_jax.models.layers import GatedMLP, activate
from sarathi_jax.models.linear import Linear


class MoE(nnx.Module):
    """sum over a token's experts of share * down(activation(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, moe: MoEConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        embed, experts, size = (config.hidden_size,), moe.num_experts, moe.expert_size
        axes = ("expert", "expert_mlp")
        self.router = Linear(embed, (experts,), ("embed",), (None,), rngs=rngs, dtype=dtype)
        self.gate_up = Linear(embed, (experts, 2, size), ("embed",), (axes[0], None, axes[1]), rngs=rngs, dtype=dtype)
        self.down = Linear((experts, size), embed, axes, ("embed",), rngs=rngs, dtype=dtype)
        self.moe = moe
        self.activation: Activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [T, E]. Returns: [T, E]."""
        logits = _everywhere(self.router(x))
        shares = route(logits, self.moe.num_experts_per_token, is_normalized=self.moe.is_normalized)
        shares = _everywhere(shares)[:, :, None]
        gate_up = self.gate_up(x)  # [T, X, 2, F]
        inner = activate(self.activation, gate_up[:, :, 0]) * gate_up[:, :, 1]  # [T, X, F]
        # Not multiplied by zero: an expert that was not asked may overflow.
        return self.down(jnp.where(shares > 0, inner.astype(jnp.float32) * shares, 0.0).astype(inner.dtype))


def route(logits: jax.Array, num_experts_per_token: int, *, is_normalized: bool) -> jax.Array:
    """Each expert's share in each token, in float32: the softmax of its logits where it is among the largest, and zero elsewhere.

    Of experts with equal probability the first ones are chosen, as by PyTorch on a GPU; on a CPU PyTorch leaves open which.

    Args:
      logits: [T, X].
      is_normalized: whether shares of a token are made to sum to one.
    Returns: f32[T, X].
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    index = jnp.arange(logits.shape[-1])
    own, other = probabilities[:, :, None], probabilities[:, None, :]
    is_ahead = (other > own) | ((other == own) & (index[None, None, :] < index[None, :, None]))  # [T, X, X]
    shares = jnp.where(is_ahead.sum(axis=-1) < num_experts_per_token, probabilities, 0.0)
    return shares / shares.sum(axis=-1, keepdims=True) if is_normalized else shares


def _everywhere(x: jax.Array) -> jax.Array:
    """The same, whole on every device: without a word the partitioner would cut the routing over experts, and talk about every softmax."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, PartitionSpec())


def make_mlp(config: ModelConfig, layer_index: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> MoE | GatedMLP:
    """The MLP of a layer: of experts, or plain."""
    if config.moe is not None and config.is_moe_layer(layer_index):
        return MoE(config, config.moe, rngs=rngs, dtype=dtype)
    return GatedMLP(config, rngs=rngs, dtype=dtype)
