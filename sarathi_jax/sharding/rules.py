"""Logical axes to mesh axes. Changing how a model is sharded is changing this table, never the model.

Logical axes: vocab, embed, norm, heads, kv_heads, mlp, expert, expert_mlp are those of parameters; tokens is the residual stream's, between the parts of a
layer. The keys and values in the cache are cut as kv_heads are. A table for `stage` is not needed: layers go to stages one after another.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from sarathi_jax.errors import ConfigError
from sarathi_jax.sharding.mesh import AXES

MeshAxes = str | Sequence[str] | None
Rules = Mapping[str, MeshAxes]

# A layer's own parts, all of them: what has no experts is cut over the devices of all experts.
_LAYER = ("expert", "tensor")

# Megatron's cut: columns of the first product of a pair, rows of the second, so that each pair needs one all-reduce (Shoeybi et al. 2019).
MEGATRON: Rules = {
    "vocab": _LAYER,
    "embed": None,
    "norm": None,
    "heads": _LAYER,
    "kv_heads": _LAYER,
    "mlp": _LAYER,
    "expert": "expert",
    "expert_mlp": "tensor",
    "tokens": None,
}
# Every device computes all of it.
REPLICATED: Rules = dict.fromkeys(MEGATRON)
# Megatron's cut with sequence parallelism: between the parts of a layer each device holds its share of the tokens, so that norms are not computed
# over and over, and an all-reduce becomes a reduce-scatter and an all-gather (Korthikanti et al. 2022).
SEQUENCE: Rules = {**MEGATRON, "tokens": _LAYER}

RULES: Mapping[str, Rules] = {"megatron": MEGATRON, "replicated": REPLICATED, "sequence": SEQUENCE}
# The replicas of `data` share nothing, and `stage` is where layers are, not how they are cut.
CUTTING_AXES = AXES[2:]


def find_rules(name: str | Rules) -> Rules:
    """A table by its name, one of one's own, or one from a TOML file: a line for each logical axis, as in `mlp = ["expert", "tensor"]` or `embed = []`.

    What one's own leaves out is as in `megatron`.
    Raises: ConfigError if there is no such table, the file is none, or what it says can't be.
    """
    if not isinstance(name, str):
        return check_rules({**MEGATRON, **name})
    if name in RULES:
        return RULES[name]
    path = Path(name)
    if path.suffix != ".toml":
        raise ConfigError(
            f"rules must be one of {', '.join(RULES)}, or a .toml file, got {name!r}: choose one of these."
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"rules must be a TOML file, got {path} ({error}): correct it.") from error
    try:
        return check_rules({**MEGATRON, **table})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def check_rules(rules: Rules) -> Rules:
    """The same rules. Raises: ConfigError if an axis is unknown, or a value is no mesh axis, several, or none."""
    for axis, value in rules.items():
        if axis not in MEGATRON:
            raise ConfigError(f"A logical axis must be one of {', '.join(MEGATRON)}, got {axis!r}: correct its name.")
        names = [value] if isinstance(value, str) else value
        is_list = names is None or (isinstance(names, Sequence) and all(isinstance(name, str) for name in names))
        if not is_list or len(set(names or ())) < len(names or ()) or not set(names or ()) <= set(CUTTING_AXES):
            raise ConfigError(
                f"{axis} must be cut over {' or '.join(CUTTING_AXES)}, over both, or not at all, got {value!r}: write"
                f' {axis} = ["tensor"].'
            )
    return rules


def mesh_axes(rules: Rules, axis: str, mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """The axes of this mesh that a logical axis is cut over."""
    value = rules.get(axis)
    names = (value,) if isinstance(value, str) else tuple(value or ())
    return tuple(name for name in names if name in mesh.shape)


def num_parts(rules: Rules, axis: str, mesh: jax.sharding.Mesh) -> int:
    """How many parts a logical axis is cut into."""
    return math.prod(mesh.shape[name] for name in mesh_axes(rules, axis, mesh))


def spec_of(axes: Sequence[Sequence[str]]) -> PartitionSpec:
    """A PartitionSpec from the mesh axes of each dimension."""
    return PartitionSpec(*(names[0] if len(names) == 1 else tuple(names) or None for names in axes))


def named_sharding(
    path: str, shape: Sequence[int], axes: Sequence[str | None], mesh: jax.sharding.Mesh, rules: Rules
) -> NamedSharding:
    """The sharding of one parameter.

    Args:
      path: its name, for messages.
      shape, axes: one size and one logical name (None: never cut) a dimension.
    Raises: ConfigError if a logical axis is not in the rules, two dimensions would share a mesh axis, or a size does not divide.
    """
    cuts = [_cut(path, size, axis, mesh, rules) for size, axis in zip(shape, axes, strict=True)]
    used = [name for names in cuts for name in names]
    for name in used:
        if used.count(name) > 1:
            raise ConfigError(f"{path}: a mesh axis can cut one dimension only, got {name!r} twice: change the rules.")
    return NamedSharding(mesh, spec_of(cuts))


def _cut(path: str, size: int, axis: str | None, mesh: jax.sharding.Mesh, rules: Rules) -> tuple[str, ...]:
    if axis is None:
        return ()
    if axis not in rules:
        raise ConfigError(f"{path}: logical axis {axis!r} must be in the rules, got only {', '.join(rules)}: add it.")
    names = mesh_axes(rules, axis, mesh)
    parts = num_parts(rules, axis, mesh)
    if size % parts:
        raise ConfigError(
            f"{path}: {axis}={size} must be a multiple of the mesh's {' x '.join(f'{name}={mesh.shape[name]}' for name in names)}: choose a mesh"
            " that divides it."
        )
    return names
