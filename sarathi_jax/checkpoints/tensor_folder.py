"""The weights of a model folder: one safetensors file, or several with an index, as one set of named tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from sarathi_jax.checkpoints.json_file import read_json_object
from sarathi_jax.checkpoints.safetensors_file import SafetensorsFile, TensorEntry
from sarathi_jax.errors import ModelError, ModelNotFoundError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.gguf")


class TensorInfo(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class TensorSource(Protocol):
    """Named tensors, of which blocks can be read. `index` has at most one slice a dimension. What `read` returns can be written to only if it is nobody
    else's."""

    @property
    def entries(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray: ...


class SafetensorsFolder:
    """A `TensorSource` over a model folder. Opening it reads the headers of its files, and no weights."""

    def __init__(self, folder: Path | str) -> None:
        """Raises: ModelNotFoundError if there are no weights, ModelError if a file or the index is wrong."""
        self.folder = Path(folder)
        index_path = self.folder / INDEX_NAME
        self._file_of = self._open_index(index_path) if index_path.is_file() else self._open_all()
        self._entries = {name: file.entries[name] for name, file in self._file_of.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors' names, sorted."""
        return tuple(sorted(self._file_of))

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Name -> dtype and shape."""
        return self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises: KeyError if there is no such tensor."""
        return self._entries[name].shape

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A block of a tensor, as a read-only view of its file. Raises: KeyError if there is no such tensor."""
        return self._file_of[name].read(name, index)

    def _open_index(self, path: Path) -> dict[str, SafetensorsFile]:
        weight_map = read_json_object(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ModelError(
                f"{path}: weight_map must map tensor names to file names, got {str(weight_map)[:80]}: fetch it again."
            )
        shard_of = cast("dict[str, str]", weight_map)
        files = {shard: SafetensorsFile(self._shard_path(path, shard)) for shard in sorted(set(shard_of.values()))}
        for name, shard in shard_of.items():
            if name not in files[shard].entries:
                raise ModelError(f"{path}: {shard} must hold tensor {name!r}, got a file without it: fetch both again.")
        return {name: files[shard] for name, shard in shard_of.items()}

    def _shard_path(self, index_path: Path, shard: str) -> Path:
        path = self.folder / shard
        if not shard or Path(shard).name != shard or not is_inside(path, self.folder):
            raise ModelError(
                f"{index_path}: a shard must be a file in the model's own folder, got {shard!r}: don't trust this model folder."
            )
        if not path.is_file():
            raise ModelNotFoundError(
                f"{index_path}: {shard} must be in {self.folder}, got no such file: fetch the missing shard."
            )
        return path

    def _open_all(self) -> dict[str, SafetensorsFile]:
        single = self.folder / SINGLE_NAME
        # Beside a whole model there may be the same one again in its makers' own format.
        paths = [single] if single.exists() else sorted(self.folder.glob("*.safetensors"))
        if not paths:
            raise self._no_weights()
        file_of: dict[str, SafetensorsFile] = {}
        for path in paths:
            if not is_inside(path, self.folder):
                raise ModelError(
                    f"{path} must lie in the model's own folder, got a link out of it: don't trust this model folder."
                )
            file = SafetensorsFile(path)
            if both := file_of.keys() & file.entries.keys():
                raise ModelError(
                    f"{path}: a tensor must be in one file only, got {min(both)!r} in {file_of[min(both)].path} too: remove one."
                )
            file_of |= dict.fromkeys(file.entries, file)
        return file_of

    def _no_weights(self) -> ModelError:
        others = sorted(path.name for pattern in OTHER_WEIGHTS for path in self.folder.glob(pattern))
        if others:
            return ModelError(
                f"{self.folder} must hold weights as safetensors only, got {', '.join(others[:3])}: other formats can run code when they"
                " are read; save the model again with safe_serialization=True."
            )
        return ModelNotFoundError(
            f"{self.folder} must hold *.safetensors, got none: fetch the weights, or use load_format='dummy'."
        )


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file really lies in a model folder, or in the blobs of the hub's cache that the folder is a snapshot of."""
    folder = folder.absolute()
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append((folder.parent.parent / "blobs").resolve())
    return any(path.resolve().is_relative_to(root) for root in roots)
