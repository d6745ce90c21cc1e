"""From any model to a folder that holds its parameters as an Orbax checkpoint, in the layout that they have here: nothing is left to be put together or
transposed when it is loaded, and whatever mesh loads it reads whole chunks.

Parameters pass through the host's memory a few at a time. The folder has another name until it is complete."""

import json
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

from sarathi_jax.checkpoints.json_file import read_json_object
from sarathi_jax.checkpoints.loader import as_dtype
from sarathi_jax.checkpoints.model_config import CONFIG_NAME
from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.checkpoints.tensor_folder import is_inside
from sarathi_jax.checkpoints.weight_files import FORMAT_KEY, FORMAT_VERSION, ORBAX_NAME, WeightFiles, open_weights
from sarathi_jax.errors import CapacityError, ConfigError, ModelError, SarathiError
from sarathi_jax.models import create_model
from sarathi_jax.models.config import ModelConfig

DTYPES = ("float32", "bfloat16", "float16")
# Logical axes of few and large items, which meshes cut: each item is a chunk of its own at least.
PIECE_AXES = ("expert", "heads", "kv_heads")
CHUNK_BYTES = 4 << 20
# Parameters that are read while others are written: so many at a time, and so many bytes of them in memory, unless one alone is larger.
NUM_READERS = 2
READ_AHEAD_BYTES = 1 << 30
COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt")
COPIED_NAMES = ("LICENSE", "NOTICE", "USE_POLICY.md")
WEIGHTS_INDEX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Converted:
    """What `convert` wrote. num_bytes: of the parameters."""

    folder: Path
    num_parameters: int
    num_bytes: int


def convert(
    source: str | Path, destination: str | Path, *, dtype: str | None = None, progress: bool = False
) -> Converted:
    """Write a model's parameters as an Orbax checkpoint, with its configuration and tokenizer: a model folder like any other.

    Args:
      source: "demo", a folder, or a hub id.
      destination: the folder to make, in one that is there.
      dtype: "float32", "bfloat16" or "float16"; None: as they are.
      progress: show a bar of bytes on standard error.
    Raises: ConfigError for another dtype; ModelError if the model is wrong or missing, if the destination is there or can't be written, or if the dtype
      can't hold a value; CapacityError if the disk has no room. Nothing is left behind then."""
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}: choose one of these.")
    found, target = find_model(source), Path(destination).expanduser().absolute()
    assert found.folder is not None, "a built-in shape is refused where weights are to be read"
    weights = open_weights(found.folder, found.config)
    _check_destination(target)
    parameters = [_Parameter(path, weights, np.dtype(dtype) if dtype else None) for path in weights.sources]
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    _check_room(target, num_bytes)
    unfinished = _make_folder(target)
    try:
        with tqdm(total=num_bytes, desc="convert", unit="B", unit_scale=True, disable=not progress) as bar:
            _write_parameters(unfinished / ORBAX_NAME, found.config, parameters, bar)
        _copy_files(found.folder, unfinished, dtype)
        unfinished.rename(target)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, (OSError, ValueError)) and not isinstance(
            error, SarathiError
        ):  # TensorStore's are ValueErrors
            reason = " ".join(str(error).split())[-300:]
            raise ModelError(f"{target} must be writable, got {reason}: choose another place, or make room.") from error
        raise
    return Converted(target, sum(int(np.prod(parameter.shape)) for parameter in parameters), num_bytes)


class _Parameter:
    """A parameter that is read when its turn to be written comes."""

    def __init__(self, path: str, weights: WeightFiles, dtype: np.dtype[Any] | None) -> None:
        self.path, self._weights, self._source = path, weights, weights.sources[path]
        entries = [weights.tensors.entries[spec.name] for spec in self._source.tensors]
        self.dtype = dtype or np.result_type(*(entry.dtype for entry in entries))
        self.shape = self._source.shape

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        whole = tuple(slice(0, size) for size in self.shape)
        block = self._source.read_block(self._weights.tensors.read, whole)
        return np.ascontiguousarray(as_dtype(self.path, block, self.dtype))


class _ParameterHandler(ocp.type_handlers.NumpyHandler):
    """Lets Orbax write parameters one after the other, each as an array, where it would have all of them in memory at once."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._bar = bar

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[Any]:
        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="convert") as pool:
            arrays = _read_ahead(pool, values)
            for array, info, arg in zip(arrays, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
                for written in await super().serialize([array], [info], [arg]):
                    written.result()
                self._bar.update(array.nbytes)
        return []


def _read_ahead(pool: ThreadPoolExecutor, parameters: Iterable[_Parameter]) -> Iterator[np.ndarray]:
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    num_bytes = 0
    for parameter in parameters:
        while waiting and num_bytes + parameter.nbytes > READ_AHEAD_BYTES:
            read_bytes, read = waiting.popleft()
            yield read.result()
            num_bytes -= read_bytes
        waiting.append((parameter.nbytes, pool.submit(parameter.read)))
        num_bytes += parameter.nbytes
    while waiting:
        yield waiting.popleft()[1].result()


def _write_parameters(folder: Path, config: ModelConfig, parameters: Sequence[_Parameter], bar: "tqdm[Any]") -> None:
    axes = _piece_axes(config)
    chunks = {each.path: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=axes[each.path]) for each in parameters}
    handlers = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler()), (_Parameter, _ParameterHandler(bar))
    )
    # Compressed arrays take longer to read: docs/decisions/015-converted-models.md.
    tree_handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    with ocp.Checkpointer(tree_handler) as checkpointer:
        args = ocp.args.PyTreeSave(
            _nested({each.path: each for each in parameters}),
            save_args=_nested(chunks),
            custom_metadata={FORMAT_KEY: FORMAT_VERSION, "family": config.family},
        )
        checkpointer.save(folder, args=args)


def _piece_axes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> the dimensions that are cut into single items."""
    model = nnx.eval_shape(lambda: create_model(config, rngs=nnx.Rngs(0), dtype=np.dtype(np.float32)))
    axes: dict[str, tuple[int, ...]] = {}
    for keys, param in nnx.to_flat_state(nnx.state(model)):
        names = param.get_metadata().get("out_sharding") or ()
        axes[".".join(map(str, keys))] = tuple(index for index, name in enumerate(names) if name in PIECE_AXES)
    return axes


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """ "layers.0.norm.scale" -> nested dicts, as `nnx.to_pure_dict` has them."""
    root: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return root


def _check_destination(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise ModelError(
            f"{target} must not be there yet, got a folder or file of that name: remove it, or choose another name."
        )
    if not target.parent.is_dir():
        raise ModelError(f"{target} must be in a folder that is there, got no folder {target.parent}: make it first.")


def _check_room(target: Path, num_bytes: int) -> None:
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < num_bytes:
        raise CapacityError(
            f"{target} takes {num_bytes / 2**30:.1f} GiB, got {free_bytes / 2**30:.1f} GiB free on that disk: make room, choose another place, or a"
            " smaller dtype."
        )


def _make_folder(target: Path) -> Path:
    """Beside the destination, so that renaming it moves nothing."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"{target.name}.unfinished-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"{target} must be writable, got {error}: choose another place.") from error


def _copy_files(source: Path, target: Path, dtype: str | None) -> None:
    """Everything beside the weights; config.json last, since what has it is a model."""
    for path in sorted(source.iterdir()):
        is_wanted = path.name.startswith(COPIED_NAMES) or (
            path.suffix in COPIED_SUFFIXES and not path.name.endswith(WEIGHTS_INDEX)
        )
        if is_wanted and path.name != CONFIG_NAME and path.is_file() and is_inside(path, source):
            shutil.copyfile(path, target / path.name)
    config = read_json_object(source / CONFIG_NAME)
    if dtype is not None:
        config = {**config, "dtype": dtype}
        config.pop("torch_dtype", None)
    (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    target.chmod(0o755)  # a temporary folder is its maker's alone
