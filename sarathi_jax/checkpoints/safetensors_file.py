"""One safetensors file, memory-mapped: any block of any tensor without reading the rest.

The file is taken to be hostile until its header has been checked against its size: 8 bytes of header length, that many
bytes of JSON (name -> dtype, shape, data_offsets), then the tensors' bytes, in order, without gap or overlap. Knows
nothing of models."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sarathi_jax.errors import ModelError, ModelNotFoundError

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 50_000
MAX_DIMENSIONS = 8
MAX_LISTED = 5
LENGTH_BYTES = 8

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor's bytes lie: from `begin` up to `end`, counted from the end of the header."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A file's tensors, by name. Opening it reads the header only."""

    def __init__(self, path: Path) -> None:
        """Raises: ModelNotFoundError if it can't be opened; ModelError, naming file and tensor, if it is not a whole
        safetensors file."""
        self.path = path
        try:
            num_bytes = path.stat().st_size
            with path.open("rb") as file:
                header, data_start = _read_header(path, file.read(LENGTH_BYTES), num_bytes, file.read)
            self.entries = _check_entries(path, header, num_bytes - data_start)
            self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise ModelNotFoundError(f"{path} can't be read ({error}): check the model folder.") from error
        self._data_start = data_start

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A block of a tensor: a read-only view of the file, of the file's dtype. `index` has at most one slice a
        dimension."""
        entry = self.entries[name]
        data = self._bytes[self._data_start + entry.begin : self._data_start + entry.end]
        return data.view(np.ndarray).view(entry.dtype).reshape(entry.shape)[index]


def _wrong(path: Path, rule: str, got: object) -> ModelError:
    return ModelError(f"{path}: {rule}, got {got}: the file is damaged or no safetensors file; fetch it again.")


def _read_header(path: Path, length: bytes, num_bytes: int, read: Any) -> tuple[dict[str, Any], int]:
    """Returns: the header, and where the tensors' bytes start."""
    if len(length) < LENGTH_BYTES:
        raise _wrong(path, f"a safetensors file must have at least {LENGTH_BYTES} bytes", f"{num_bytes}")
    header_bytes = int.from_bytes(length, "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise _wrong(path, f"its header must be at most {MAX_HEADER_BYTES} bytes", header_bytes)
    if LENGTH_BYTES + header_bytes > num_bytes:
        raise _wrong(path, f"its header of {header_bytes} bytes must fit into the file", f"a file of {num_bytes} bytes")
    try:
        header = json.loads(read(header_bytes).decode("utf-8"), object_pairs_hook=_distinct_pairs)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise _wrong(path, "its header must be JSON in UTF-8", f"{type(error).__name__}: {error}"[:200]) from error
    if not isinstance(header, dict):
        raise _wrong(path, "its header must be a JSON object", type(header).__name__)
    return header, LENGTH_BYTES + header_bytes


def _distinct_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name that occurs twice")
    return value


def _check_entries(path: Path, header: dict[str, Any], data_bytes: int) -> dict[str, TensorEntry]:
    """The tensors by name, once it holds that they fill `data_bytes` exactly."""
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise _wrong(path, f"a file must hold at most {MAX_TENSORS} tensors", len(header))
    entries = [_check_entry(path, name, value) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            kind = "overlap" if entry.begin < position else "a gap"
            raise _wrong(
                path,
                f"tensor {entry.name!r} must begin at byte {position}, where the one before ends",
                f"{entry.begin} ({kind})",
            )
        position = entry.end
    if position > data_bytes:
        cut = [repr(entry.name) for entry in entries if entry.end > data_bytes]
        more = f" and {len(cut) - MAX_LISTED} more" if len(cut) > MAX_LISTED else ""
        raise _wrong(
            path,
            f"tensor{'s' if len(cut) > 1 else ''} {', '.join(cut[:MAX_LISTED])}{more} must end inside the file",
            f"{position - data_bytes} bytes too few (truncated)",
        )
    if position != data_bytes:
        raise _wrong(path, "the last tensor must end where the file ends", f"{data_bytes - position} bytes after it")
    return {entry.name: entry for entry in entries}


def _check_entry(path: Path, name: str, value: Any) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = DTYPES.get(value["dtype"]), value["shape"], value["data_offsets"]
        is_whole = all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise _wrong(path, f"tensor {name!r} must have dtype, shape and data_offsets", str(value)[:100]) from error
    if dtype is None:
        raise ModelError(
            f"{path}: tensor {name!r} must be one of {', '.join(DTYPES)}, got {value['dtype']!r}: convert the weights."
        )
    if not is_whole or len(shape) > MAX_DIMENSIONS:
        raise _wrong(
            path,
            f"tensor {name!r} must have up to {MAX_DIMENSIONS} sizes and two offsets, whole and not negative",
            str(value)[:100],
        )
    num_bytes = math.prod(shape) * dtype.itemsize
    if end - begin != num_bytes:
        raise _wrong(path, f"tensor {name!r} of {value['dtype']}{shape} must take {num_bytes} bytes", end - begin)
    return TensorEntry(name, dtype, tuple(shape), begin, end)
