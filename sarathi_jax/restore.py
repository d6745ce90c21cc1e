"""restore: the variables of a user's own Flax module, from what a training run saved with Orbax, onto any mesh."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from sarathi_jax.checkpoints.loader import read_params
from sarathi_jax.checkpoints.orbax_tree import OrbaxTree, find_tree
from sarathi_jax.errors import ModelError
from sarathi_jax.models.weights import direct_source
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import variable_sharding
from sarathi_jax.sharding.rules import MEGATRON, Rules

MAX_LISTED = 5


def restore[M: nnx.Module](
    path: str | Path,
    model: M,
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules = MEGATRON,
    at: str | None = None,
    progress: bool = False,
) -> M:
    """A module like `model`, with the values of a checkpoint.

    Args:
      path: what Orbax wrote: one checkpoint, the folder of a step, or of a run with one step. It holds `nnx.state(module)`, or pure dicts of it, alone or
        among other things.
      model: the module that was saved, with values or without (`nnx.eval_shape`). Values keep its dtypes. The state of random number generators is not
        restored: it stays as it is in `model`.
      mesh: None is one device.
      rules: logical axis -> mesh axes, for the axes that the module's variables carry; a variable without axes is on every device.
      at: where in the checkpoint's tree the variables are, as in "state.params"; None: at its root, or under one of its keys.
      progress: show a bar of bytes on standard error.
    Raises: ModelNotFoundError if there is no checkpoint; ModelError if it is damaged, or not this module's, or holds it several times; ConfigError if the
      rules don't fit.
    """
    graph, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    mesh = make_mesh({}) if mesh is None else mesh
    variables = {".".join(map(str, keys)): variable for keys, variable in nnx.to_flat_state(state)}
    known = dict(zip(variables, leaves, strict=True))
    parameters = {
        name: jax.ShapeDtypeStruct(
            known[name].shape,
            known[name].dtype,
            sharding=variable_sharding(name, variable, known[name].shape, mesh, rules),
        )
        for name, variable in variables.items()
        if not isinstance(variable, nnx.RngState)
    }
    _check_generators({name: leaf for name, leaf in known.items() if name not in parameters})
    tree = find_tree(Path(path).expanduser(), list(parameters), at)
    _check_arrays(tree, parameters, known)
    sources = {name: direct_source(name, struct.shape) for name, struct in parameters.items()}
    arrays = read_params(tree, sources, parameters, progress=progress)
    return nnx.merge(graph, jax.tree.unflatten(treedef, [arrays.get(name, leaf) for name, leaf in known.items()]))


def _check_generators(leaves: Mapping[str, Any]) -> None:
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            raise ModelError(
                f"{name} is the state of a random number generator, which is not restored, and must have a value, got none: make the module itself in place"
                " of its nnx.eval_shape, or without dropout."
            )


def _check_arrays(tree: OrbaxTree, parameters: Mapping[str, jax.ShapeDtypeStruct], known: Mapping[str, Any]) -> None:
    faults = [*_wrong_arrays(tree, parameters), *(f"extra {name}" for name in tree.entries if name not in known)]
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise ModelError(
            f"{tree.folder.folder}: the arrays{f' at {tree.key!r}' if tree.key else ''} must be the module's variables, got"
            f" {'; '.join(faults[:MAX_LISTED])}{more}: restore the module that was saved."
        )


def _wrong_arrays(tree: OrbaxTree, parameters: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[str]:
    for name, struct in parameters.items():
        entry = tree.entries[name]
        is_float = all(jax.numpy.issubdtype(each, np.floating) for each in (entry.dtype, struct.dtype))
        if entry.shape != struct.shape:
            yield f"{name}{list(entry.shape)} in place of {list(struct.shape)}"
        elif entry.dtype != struct.dtype and not is_float:
            yield f"{name} of {entry.dtype} in place of {struct.dtype}"
