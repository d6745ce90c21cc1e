"""A model's parameters without their values: paths, shapes, shardings, and the way from a flat tuple of arrays back to the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from sarathi_jax.errors import ConfigError
from sarathi_jax.models import CausalLM, GenerativeModel, ModelConfig, create_model
from sarathi_jax.models.layout import LAYERS, Layout, lay_out
from sarathi_jax.models.weights import Index, ParamSource, direct_source
from sarathi_jax.sharding.mesh import axis_size
from sarathi_jax.sharding.rules import Rules, mesh_axes, named_sharding, num_parts


@dataclass(frozen=True)
class ModelState:
    """A model on a mesh.

    config: of all layers, with as many KV heads as attention on this mesh has. rules: what it is cut by. layout: how its parameters are laid out.
    parameters: path, as in "layers.0.attention.qkv.kernel" -> shape, dtype and sharding, in the order of the flat tuple. With stages, a layer's
      parameters have the stages as their first axis.
    """

    config: ModelConfig
    mesh: jax.sharding.Mesh
    rules: Rules
    layout: Layout
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
    def num_stages(self) -> int:
        return self.layout.num_stages

    @property
    def num_stage_layers(self) -> int:
        """Layers that one stage runs."""
        return self.config.num_layers // self.layout.num_stages

    @property
    def num_kv_parts(self) -> int:
        """Over how many devices keys and values are spread: parts of the heads, times stages."""
        return num_parts(self.rules, "kv_heads", self.mesh) * self.layout.num_stages

    @property
    def dtype(self) -> jnp.dtype:
        """Of weights and activations."""
        return next(each.dtype for each in self.parameters.values() if jnp.issubdtype(each.dtype, jnp.floating))

    @property
    def vocab_axes(self) -> tuple[str, ...]:
        """The mesh axes that logits are cut over, as the embedding is; (): they are whole everywhere."""
        return self.axes("vocab") if "embedding.embedding" in self.parameters else ()

    def axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that a logical axis is cut over."""
        return mesh_axes(self.rules, axis, self.mesh)

    def stage_specs(self) -> tuple[PartitionSpec, ...]:
        """For each array of the flat tuple: cut over the stages or the same in all of them."""
        return tuple(PartitionSpec("stage") if path.startswith(LAYERS) else PartitionSpec() for path in self.parameters)

    def flat(self, params: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        """Arrays by path, as the flat tuple that `merge` takes."""
        return tuple(params[path] for path in self.parameters)

    def merge(self, leaves: Sequence[jax.Array]) -> CausalLM:
        """The model over these arrays, or over tracers of them; with stages, the part of it that one stage runs."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.treedef, leaves))


def choose_layout(config: ModelConfig, mesh: jax.sharding.Mesh, rules: Rules) -> Layout:
    """The layout that a model needs on a mesh. Raises: ConfigError if its KV heads can't be dealt out to the devices."""
    parts, num_kv, group = num_parts(rules, "kv_heads", mesh), config.num_kv_heads, config.num_queries_per_kv
    if num_kv % parts == 0:
        return Layout(axis_size(mesh, "stage"))
    if parts % num_kv or group % (parts // num_kv):
        axes = " x ".join(f"{name}={mesh.shape[name]}" for name in mesh_axes(rules, "kv_heads", mesh))
        raise ConfigError(
            f"num_kv_heads={num_kv} must be a multiple of the mesh's {axes}, or be repeated a whole number of times with {group} queries a head to deal out, got"
            f" {parts} devices: choose a mesh that divides {num_kv} or {config.num_heads}."
        )
    return Layout(axis_size(mesh, "stage"), parts // num_kv)


def abstract_model(config: ModelConfig, dtype: jnp.dtype, mesh: jax.sharding.Mesh, rules: Rules) -> ModelState:
    """Describe a model on a mesh without making it. Raises: ConfigError if the rules or the layers don't fit it."""
    layout = choose_layout(config, mesh, rules)
    whole = layout.repeated(config)
    stage = layout.stage(whole)
    model = nnx.eval_shape(lambda: create_model(stage, rngs=nnx.Rngs(0), dtype=dtype))
    return _describe(model, whole, mesh, rules, layout)


def split_model(
    model: GenerativeModel, mesh: jax.sharding.Mesh, rules: Rules
) -> tuple[ModelState, tuple[jax.Array, ...]]:
    """Describe a model that exists, and give its arrays as the flat tuple, sharded by the rules.

    Raises: ConfigError if the rules don't fit it, or the mesh needs another layout than the model's own and the model is not one of this package.
    """
    layout = choose_layout(model.config, mesh, rules)
    if layout != Layout():
        return _lay_out_model(model, layout, mesh, rules)
    state = _describe(model, model.config, mesh, rules, layout)
    leaves = jax.tree.leaves(nnx.split(model)[1])
    shardings = [spec.sharding for spec in state.parameters.values()]
    return state, tuple(jax.device_put(leaf, sharding) for leaf, sharding in zip(leaves, shardings, strict=True))


def _lay_out_model(
    model: GenerativeModel, layout: Layout, mesh: jax.sharding.Mesh, rules: Rules
) -> tuple[ModelState, tuple[jax.Array, ...]]:
    """By way of the host's memory, block by block."""
    if not isinstance(model, CausalLM):
        raise ConfigError(
            f"Stages, and KV heads on more devices than there are heads, need a model of this package, got {type(model).__name__} on"
            f" mesh {dict(mesh.shape)}: choose a mesh without stages that divides its {model.config.num_kv_heads} KV heads."
        )
    arrays = {".".join(map(str, keys)): param[...] for keys, param in nnx.to_flat_state(nnx.split(model)[1])}
    dtype = next(iter(arrays.values())).dtype
    state = abstract_model(model.config, dtype, mesh, rules)
    own = {path: direct_source(path, array.shape) for path, array in arrays.items()}
    sources = lay_out(model.config, own, layout)

    def read(name: str, index: Index) -> np.ndarray:
        return np.asarray(arrays[name][index])

    def make(source: ParamSource, struct: jax.ShapeDtypeStruct) -> jax.Array:
        assert struct.sharding is not None, "every parameter of a state has a sharding"
        return jax.make_array_from_callback(
            struct.shape, struct.sharding, lambda index: source.read_block(read, _whole(index, struct.shape))
        )

    return state, tuple(make(sources[path], struct) for path, struct in state.parameters.items())


def _whole(index: Index | None, shape: tuple[int, ...]) -> Index:
    assert index is not None, "every device holds some block"
    return tuple(slice(*each.indices(size)) for each, size in zip(index, shape, strict=True))


def _describe(
    model: GenerativeModel, config: ModelConfig, mesh: jax.sharding.Mesh, rules: Rules, layout: Layout
) -> ModelState:
    graph, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    parameters: dict[str, jax.ShapeDtypeStruct] = {}
    for (keys, param), leaf in zip(nnx.to_flat_state(state), leaves, strict=True):
        path = ".".join(map(str, keys))
        sharding, shape = variable_sharding(path, param, leaf.shape, mesh, rules), leaf.shape
        if layout.num_stages > 1 and path.startswith(LAYERS):
            sharding, shape = (
                NamedSharding(mesh, PartitionSpec("stage", *sharding.spec)),
                (layout.num_stages, *leaf.shape),
            )
        parameters[path] = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
    return ModelState(config, mesh, rules, layout, graph, treedef, parameters)


def variable_sharding(
    path: str, variable: nnx.Variable[Any], shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: Rules
) -> NamedSharding:
    """Where a variable of a Flax module is kept, by the logical axes that it carries; one without axes is everywhere. Raises: ConfigError: see `named_sharding`."""
    axes = variable.get_metadata().get("out_sharding") or (None,) * len(shape)
    return named_sharding(path, shape, axes, mesh, rules)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size
