"""A model's parameters without their values: paths, shapes, shardings, and the way from a flat tuple of arrays back to the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models import CausalLM, ModelConfig, create_model
from sarathi_jax.sharding.rules import Rules, named_sharding


@dataclass(frozen=True)
class ModelState:
    """parameters: path, as in "layers.0.attention.qkv.kernel" -> shape, dtype and sharding, in the order of the flat tuple."""

    config: ModelConfig
    graph: Any
    treedef: Any
    parameters: dict[str, jax.ShapeDtypeStruct]

    @property
    def num_bytes(self) -> int:
        """Of all parameters, on one device."""
        return sum(
            spec.dtype.itemsize * _size(spec.sharding.shard_shape(spec.shape))
            for spec in self.parameters.values()
            if spec.sharding
        )

    @property
    def num_parameters(self) -> int:
        return sum(_size(spec.shape) for spec in self.parameters.values())

    @property
    def vocab_axis(self) -> str | None:
        """The mesh axis that logits are cut over, as the embedding is; None: they are whole everywhere."""
        embedding = self.parameters.get("embedding.embedding")
        spec = embedding.sharding.spec if embedding is not None and embedding.sharding is not None else (None,)
        return spec[0]

    def flat(self, params: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        """Arrays by path, as the flat tuple that `merge` takes."""
        return tuple(params[path] for path in self.parameters)

    def merge(self, leaves: Sequence[jax.Array]) -> CausalLM:
        """The model over these arrays, or over tracers of them."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.treedef, leaves))


def abstract_model(config: ModelConfig, dtype: jnp.dtype, mesh: jax.sharding.Mesh, rules: Rules) -> ModelState:
    """Describe a model on a mesh without making it. Raises: ConfigError if the rules don't fit it."""
    return _describe(nnx.eval_shape(lambda: create_model(config, rngs=nnx.Rngs(0), dtype=dtype)), mesh, rules)


def split_model(model: CausalLM, mesh: jax.sharding.Mesh, rules: Rules) -> tuple[ModelState, tuple[jax.Array, ...]]:
    """Describe a model that exists, and give its arrays as the flat tuple, sharded by the rules."""
    state = _describe(model, mesh, rules)
    leaves = jax.tree.leaves(nnx.split(model)[1])
    shardings = [spec.sharding for spec in state.parameters.values()]
    return state, tuple(jax.device_put(leaf, sharding) for leaf, sharding in zip(leaves, shardings, strict=True))


def _describe(model: CausalLM, mesh: jax.sharding.Mesh, rules: Rules) -> ModelState:
    graph, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    parameters: dict[str, jax.ShapeDtypeStruct] = {}
    for (keys, param), leaf in zip(nnx.to_flat_state(state), leaves, strict=True):
        path = ".".join(map(str, keys))
        axes = param.get_metadata().get("out_sharding") or (None,) * len(leaf.shape)
        sharding = named_sharding(path, leaf.shape, axes, mesh, rules)
        parameters[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return ModelState(model.config, graph, treedef, parameters)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size
