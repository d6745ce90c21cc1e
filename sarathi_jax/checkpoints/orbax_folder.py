"""The arrays of one Orbax checkpoint, by name: any block of any of them without reading the rest.

Orbax says what arrays there are; it restores whole trees alone, so blocks are read with TensorStore, which Orbax wrote them with. Nothing of a checkpoint is
ever run. Knows nothing of models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from sarathi_jax.checkpoints.tensor_folder import is_inside
from sarathi_jax.errors import ModelError, ModelNotFoundError

METADATA_NAME = "_METADATA"
# Flax keeps each variable of a module as a node of its own, with the array in this field.
VALUE_SUFFIX = ".value"
# What Orbax, and TensorStore below it, raise when a file is not what they wrote.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError)
# jax takes an array on the host that begins at such an address for its own on a CPU, and copies any other.
ALIGNMENT_BYTES = 64
# Reads under way at a time, as many as Orbax and a fast disk like; and memory for the index of what lies where, read once.
CONTEXT = {"file_io_concurrency": {"limit": 128}, "cache_pool#index": {"total_bytes_limit": 100_000_000}}


@dataclass(frozen=True, slots=True)
class StoredArray:
    """What is known of an array before it is read. path: its name in the checkpoint, if Flax added to it."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class OrbaxFolder:
    """A `TensorSource` over a folder that Orbax wrote a tree into. Opening it reads the list of arrays, and none of them."""

    def __init__(self, folder: Path | str) -> None:
        """Raises: ModelNotFoundError if it is no checkpoint, or not a whole one; ModelError if it is damaged."""
        self.folder = Path(folder).absolute()
        if not (self.folder / METADATA_NAME).is_file():
            raise ModelNotFoundError(
                f"{self.folder} must be an Orbax checkpoint of a tree, got no {METADATA_NAME} in it: it was never finished, or is something else. Write it"
                " again."
            )
        _check_links(self.folder)
        try:
            metadata = ocp.PyTreeCheckpointHandler().metadata(epath.Path(self.folder))
            self._has_one_store = bool(ocp.type_handlers.is_ocdbt_checkpoint(self.folder))
        except DAMAGE as error:
            raise _damaged(self.folder, "its list of arrays must be readable", error) from error
        self._driver = "zarr3" if metadata.use_zarr3 else "zarr"
        self.custom_metadata: Mapping[str, Any] = metadata.custom_metadata or {}
        leaves = [leaf for leaf in jax.tree.leaves(metadata.tree) if _is_array(leaf)]
        stored = (StoredArray(leaf.name, np.dtype(leaf.dtype), tuple(leaf.shape)) for leaf in leaves)
        self._entries = {array.path.removesuffix(VALUE_SUFFIX): array for array in stored}
        self._context = ts.Context(CONTEXT)
        self._opened: dict[str, Any] = {}

    @property
    def entries(self) -> Mapping[str, StoredArray]:
        """Name, as in "layers.0.attention.qkv.kernel" -> dtype and shape."""
        return self._entries

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A block of an array, in memory of its own. Raises: KeyError if there is no such array; ModelError if its data is damaged or gone."""
        entry = self._entries[name]
        try:
            block = self._open(entry.path)[index]
            values = _aligned_array(tuple(block.shape), entry.dtype)
            ts.array(values, dtype=block.dtype).write(block).result()
        except DAMAGE as error:
            raise _damaged(self.folder, f"{name}{list(entry.shape)} must be readable", error) from error
        return values

    def _open(self, path: str) -> Any:
        if path not in self._opened:
            self._opened[path] = ts.open(
                {
                    "driver": self._driver,
                    "kvstore": self._store(path),
                    "recheck_cached_data": False,
                    "recheck_cached_metadata": False,
                    "fill_missing_data_reads": False,
                },
                open=True,
                read=True,
                context=self._context,
            ).result()
        return self._opened[path]

    def _store(self, path: str) -> dict[str, Any]:
        """All arrays are in one key-value store, or each has a folder of its own."""
        folder = {"driver": "file", "path": f"{self.folder}/"}
        if self._has_one_store:
            return {"driver": "ocdbt", "base": folder, "path": f"{path}/", "cache_pool": "cache_pool#index"}
        return {**folder, "path": f"{self.folder}/{path}/"}


def _is_array(leaf: Any) -> bool:
    """Texts, empty nodes and plain numbers stand in a checkpoint too."""
    return isinstance(leaf, ocp.metadata.ArrayMetadata) and not isinstance(leaf, ocp.metadata.ScalarMetadata)


def _aligned_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def _check_links(folder: Path) -> None:
    """A folder from a stranger must not lead to this machine's other files."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not is_inside(path, folder):
            raise ModelError(
                f"{path} must lie in the checkpoint's own folder, got a link out of it: don't trust this checkpoint."
            )


def _damaged(folder: Path, rule: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    return ModelError(
        f"{folder}: {rule}, got {type(error).__name__}{': ' + reason if reason else ''}: the checkpoint is damaged, incomplete, or of a newer format; write"
        " it again, or update orbax-checkpoint."
    )
