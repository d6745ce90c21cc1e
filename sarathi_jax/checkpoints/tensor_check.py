"""Whether a folder's tensors are the ones that a model is made of: all that is wrong, in one error."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sarathi_jax.checkpoints.tensor_folder import TensorInfo, TensorSource
from sarathi_jax.errors import ModelError
from sarathi_jax.models.weights import ParamSource

MAX_LISTED = 5
FLOAT_NAMES = ("float64", "float32", "bfloat16", "float16")
HEAD_NAME = "lm_head.weight"
NUM_HEAD_ROWS = 64
# Buffers that old checkpoints saved along; they follow from the configuration.
HARMLESS_SUFFIXES = (".rotary_emb.inv_freq",)


def check_tensors(
    folder: Path,
    entries: Mapping[str, TensorInfo],
    sources: Mapping[str, ParamSource],
    *,
    is_head_tied: bool,
    ignored_prefixes: tuple[str, ...] = (),
) -> None:
    """Hold a folder's tensors against those that the model's parameters are made of.

    A tied head's own tensor is passed over here, and so are buffers that follow from the configuration, and tensors whose names begin as the model's family
    has it.

    Raises: ModelError that lists up to 5 of the tensors that are missing, misshapen, of another kind, or extra."""
    expected = {spec.name: spec.shape for source in sources.values() for spec in source.tensors}
    used = {name: entry for name, entry in entries.items() if not name.startswith(ignored_prefixes)}
    faults = [*_wrong_tensors(used, expected), *_extra_tensors(used, expected, is_head_tied=is_head_tied)]
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise ModelError(
            f"{folder}: the weights must be those that config.json describes, got {'; '.join(faults[:MAX_LISTED])}{more}:"
            " fetch the folder again, or correct config.json."
        )


def check_tied_head(folder: Path, tensors: TensorSource, embedding_name: str) -> None:
    """Hold the tensor of a tied head, where there is one, against the embedding, in a few rows that stand for all.

    Raises: ModelError if they differ: the model would run with a head that isn't its own."""
    if HEAD_NAME not in tensors.entries:
        return
    shape = tensors.entries[embedding_name].shape
    rows = [(slice(row, row + 1),) for row in range(0, shape[0], -(-shape[0] // NUM_HEAD_ROWS))]
    is_equal = tensors.entries[HEAD_NAME].shape == shape and all(
        np.array_equal(tensors.read(HEAD_NAME, row), tensors.read(embedding_name, row)) for row in rows
    )
    if not is_equal:
        raise ModelError(
            f"{folder}: {HEAD_NAME} must be {embedding_name}, since config.json ties them, got other values: set"
            " tie_word_embeddings to false in config.json, or remove the tensor."
        )


def _wrong_tensors(entries: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in expected.items():
        entry = entries.get(name)
        if entry is None:
            yield f"no {name}{list(shape)}"
        elif entry.shape != shape:
            yield f"{name}{list(entry.shape)} in place of {list(shape)}"
        elif entry.dtype.name not in FLOAT_NAMES:
            yield f"{name} of {entry.dtype.name} in place of {', '.join(FLOAT_NAMES)}"


def _extra_tensors(
    entries: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], *, is_head_tied: bool
) -> Iterator[str]:
    for name, entry in sorted(entries.items()):
        is_harmless = name.endswith(HARMLESS_SUFFIXES) or (is_head_tied and name == HEAD_NAME)
        if name not in expected and not is_harmless:
            yield f"extra {name}{list(entry.shape)}"
