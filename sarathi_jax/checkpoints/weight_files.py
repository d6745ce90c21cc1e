"""A model folder's weights, in whichever form they are there, and what each parameter is made of: Hugging Face's tensors in safetensors files, or the
parameters themselves in an Orbax checkpoint that `convert` wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarathi_jax.checkpoints.tensor_check import check_tensors, check_tied_head
from sarathi_jax.checkpoints.tensor_folder import SafetensorsFolder, TensorSource
from sarathi_jax.errors import ModelError
from sarathi_jax.models import ignored_prefixes, param_sources
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.weights import ParamSource, direct_source

# A folder in a model folder; where it is, it goes before safetensors.
ORBAX_NAME = "orbax"
# What `convert` writes beside the arrays. The version changes when a parameter's name, shape or order of elements does.
FORMAT_KEY = "sarathi_jax_format"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Named tensors, and path -> how that parameter is read from them."""

    tensors: TensorSource
    sources: Mapping[str, ParamSource]


def open_weights(folder: Path | str, config: ModelConfig) -> WeightFiles:
    """Find a model's weights and check that they are all there; no weights are read.

    Raises: ModelNotFoundError without weights; ModelError if a file is damaged or of a newer format, or if the tensors are not those that the
      configuration asks for."""
    folder, sources = Path(folder), param_sources(config)
    if not (folder / ORBAX_NAME).is_dir():
        tensors = SafetensorsFolder(folder)
        ignored = ignored_prefixes(config)
        check_tensors(folder, tensors.entries, sources, is_head_tied=config.is_head_tied, ignored_prefixes=ignored)
        if config.is_head_tied:
            check_tied_head(folder, tensors, sources["embedding.embedding"].tensors[0].name)
        return WeightFiles(tensors, sources)
    # Here, since Orbax takes a while to import, which safetensors need not wait for.
    from sarathi_jax.checkpoints.orbax_folder import OrbaxFolder

    arrays = OrbaxFolder(folder / ORBAX_NAME)
    _check_version(arrays.folder, arrays.custom_metadata)
    sources = {path: direct_source(path, source.shape) for path, source in sources.items()}
    check_tensors(arrays.folder, arrays.entries, sources, is_head_tied=config.is_head_tied)
    return WeightFiles(arrays, sources)


def weight_paths(folder: Path) -> list[Path]:
    """The files that `open_weights` reads from."""
    orbax = folder / ORBAX_NAME
    if orbax.is_dir():
        return sorted(path for path in orbax.rglob("*") if path.is_file())
    return sorted(folder.glob("*.safetensors"))


def _check_version(folder: Path, metadata: Mapping[str, Any]) -> None:
    """A checkpoint without a version was written by somebody's training, in today's layout or in one that the names and shapes tell of."""
    version = metadata.get(FORMAT_KEY, FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{folder}: {FORMAT_KEY} must be {FORMAT_VERSION}, got {version!r}: convert the model again with this version, or update sarathi-jax."
        )
