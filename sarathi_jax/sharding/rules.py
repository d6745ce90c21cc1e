"""Logical axes to mesh axes. Changing how a model is sharded is changing this table, never the model."""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from sarathi_jax.errors import ConfigError

Rules = Mapping[str, str | None]

# Megatron's cut: columns of the first product of a pair, rows of the second, so that each pair needs one all-reduce (Shoeybi et al. 2019).
MEGATRON: Rules = {
    "vocab": "tensor",
    "embed": None,
    "norm": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def named_sharding(
    path: str, shape: Sequence[int], axes: Sequence[str | None], mesh: jax.sharding.Mesh, rules: Rules
) -> NamedSharding:
    """The sharding of one parameter.

    Args:
      path: its name, for messages.
      shape, axes: one size and one logical name (None: never cut) a dimension.
    Raises: ConfigError if a logical axis is not in the rules, two dimensions would share a mesh axis, or a size does not divide.
    """
    spec: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        mesh_axis = _mesh_axis(path, axis, mesh, rules)
        if mesh_axis is not None and mesh_axis in spec:
            raise ConfigError(
                f"{path}: a mesh axis can cut one dimension only, got {mesh_axis!r} twice: change the rules."
            )
        if mesh_axis is not None and size % mesh.shape[mesh_axis]:
            raise ConfigError(
                f"{path}: {axis}={size} must be a multiple of the mesh's {mesh_axis}={mesh.shape[mesh_axis]}: choose a mesh that divides it."
            )
        spec.append(mesh_axis)
    return NamedSharding(mesh, PartitionSpec(*spec))


def _mesh_axis(path: str, axis: str | None, mesh: jax.sharding.Mesh, rules: Rules) -> str | None:
    if axis is None:
        return None
    if axis not in rules:
        raise ConfigError(f"{path}: logical axis {axis!r} must be in the rules, got only {', '.join(rules)}: add it.")
    mesh_axis = rules[axis]
    return mesh_axis if mesh_axis in mesh.shape else None
