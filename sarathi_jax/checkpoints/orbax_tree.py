"""Where in what a training run saved the variables of one module are: which of several Orbax checkpoints, and under which key of its tree."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sarathi_jax.checkpoints.orbax_folder import METADATA_NAME, OrbaxFolder, StoredArray
from sarathi_jax.errors import ModelError, ModelNotFoundError

MAX_LISTED = 5
# A run's folder has steps, a step has items, such as the model and the optimizer.
MAX_DEPTH = 2
UNFINISHED = ".orbax-checkpoint-tmp"


class OrbaxTree:
    """A `TensorSource`: the arrays of a checkpoint that are under one key, by what their names are from there on."""

    def __init__(self, folder: OrbaxFolder, key: str) -> None:
        self.folder, self.key = folder, key
        self._prefix = f"{key}." if key else ""
        self._entries = {
            name.removeprefix(self._prefix): entry
            for name, entry in folder.entries.items()
            if name.startswith(self._prefix)
        }

    @property
    def entries(self) -> Mapping[str, StoredArray]:
        return self._entries

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        return self.folder.read(f"{self._prefix}{name}", index)


def find_tree(path: Path, names: Sequence[str], key: str | None) -> OrbaxTree:
    """The one tree of variables below a path that holds all these names.

    Args:
      path: an Orbax checkpoint, or a folder that has some: of a step, or of a run.
      names: of a module's variables.
      key: where in the tree they are, as in "state.params"; None: at its root, or under one of its keys.
    Raises: ModelNotFoundError if there is no checkpoint; ModelError if none holds all names, or several do."""
    folders = [OrbaxFolder(folder) for folder in _find_checkpoints(path)]
    trees = [OrbaxTree(folder, each) for folder in folders for each in _keys(folder, key)]
    found = [tree for tree in trees if tree.entries.keys() >= set(names)]
    if len(found) > 1:
        places = ", ".join(_place(tree, path) for tree in found[:MAX_LISTED])
        more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
        raise ModelError(
            f"{path} must hold the module's variables once, got them {places}{more}: pass the path of that checkpoint, or at='KEY'."
        )
    if not found:
        raise _not_found(path, names, trees)
    return found[0]


def _find_checkpoints(path: Path) -> list[Path]:
    if (path / METADATA_NAME).is_file():
        return [path]
    pattern, found = METADATA_NAME, list[Path]()
    for _ in range(MAX_DEPTH):
        pattern = f"*/{pattern}"
        found += (each.parent for each in sorted(path.glob(pattern)) if UNFINISHED not in str(each))
    if not found:
        raise ModelNotFoundError(
            f"{path} must be an Orbax checkpoint of a tree, or a folder of some, got no {METADATA_NAME} in it or below: check the path."
        )
    return found


def _keys(folder: OrbaxFolder, key: str | None) -> list[str]:
    """Where to look. Not below the first keys: an optimizer's moments have the names of the variables that they are of."""
    if key is not None:
        return [key]
    return ["", *dict.fromkeys(name.partition(".")[0] for name in folder.entries)]


def _place(tree: OrbaxTree, path: Path) -> str:
    name = str(tree.folder.folder.relative_to(path.absolute()))
    parts = [f"in {name}" if name != "." else "", f"at {tree.key!r}" if tree.key else ""]
    return " ".join(filter(None, parts)) or "at its root"


def _not_found(path: Path, names: Sequence[str], trees: Sequence[OrbaxTree]) -> ModelError:
    """Tells of the tree that comes closest."""
    closest = max(trees, key=lambda tree: len(tree.entries.keys() & set(names)))
    missing = [name for name in names if name not in closest.entries]
    more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
    there = ", ".join(list(closest.entries)[:MAX_LISTED]) or "no arrays"
    return ModelError(
        f"{path} must hold all variables of the module, got no {', '.join(missing[:MAX_LISTED])}{more} {_place(closest, path)}, which has {there}, ...:"
        " restore the module that was saved, or pass at='KEY' if its variables are deeper in the tree."
    )
