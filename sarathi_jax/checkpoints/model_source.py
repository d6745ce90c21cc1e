"""From a model's name to what it is and where its files are: a folder, or a built-in shape without files."""

from dataclasses import dataclass
from pathlib import Path

from sarathi_jax.checkpoints.builtin_models import BUILTIN_MODELS
from sarathi_jax.checkpoints.hub import resolve_model_folder
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import ModelNotFoundError
from sarathi_jax.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that was found. `folder` is None for a built-in shape: it has neither weights nor a tokenizer."""

    config: ModelConfig
    folder: Path | None


def find_model(name: str | Path, *, is_dummy: bool = False) -> ModelSource:
    """Find a model and read its configuration; no weights are read.

    Args:
      name: "demo", a folder, or a hub id; with `is_dummy` also a built-in shape, which goes before a folder of that
        name (write "./name" for the folder).
      is_dummy: its weights are to be random (`load_format="dummy"`).
    Raises: ModelNotFoundError if there is none; ModelError if its configuration is wrong or not supported."""
    if is_dummy and name in BUILTIN_MODELS:
        return ModelSource(BUILTIN_MODELS[str(name)], None)
    if name in BUILTIN_MODELS and not Path(name).is_dir():
        raise ModelNotFoundError(
            f"{str(name)!r} must come with load_format='dummy', got 'auto': it is a shape without weights. Use random"
            " weights (--load-format dummy), or pass the folder or hub id of a model."
        )
    folder = resolve_model_folder(name)
    return ModelSource(read_model_config(folder), folder)
