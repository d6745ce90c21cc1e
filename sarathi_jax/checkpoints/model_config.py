"""`config.json` (and `generation_config.json`) of a Hugging Face model folder, as a `ModelConfig`: finds the family, whose file knows the fields."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from sarathi_jax.checkpoints.json_file import read_json_object
from sarathi_jax.errors import ModelError
from sarathi_jax.models import FAMILIES, Family
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"


def read_model_config(folder: Path | str) -> ModelConfig:
    """The configuration of a model folder. Reads no weights.

    Raises: ModelNotFoundError without config.json; ModelError, naming the field, if one is missing, wrong, or asks for
      what is not implemented."""
    path = Path(folder) / CONFIG_NAME
    fields = ConfigFields(path, read_json_object(path))
    config = _find_family(fields).read_config(fields)
    if eos_token_ids := _read_generation_eos(path.with_name(GENERATION_CONFIG_NAME), config.vocab_size):
        return replace(config, eos_token_ids=eos_token_ids)
    return config


def _find_family(fields: ConfigFields) -> Family:
    names = fields.get("architectures")
    supported = ", ".join(family.ARCHITECTURE for family in FAMILIES.values())
    if names is None:  # files written by hand may name the family only
        for model_type, family in FAMILIES.items():
            if fields.get("model_type") == model_type:
                return family
        raise ModelError(
            f"{fields.path}: architectures must name one of {supported}, got nothing, and"
            f" model_type={fields.get('model_type')!r}: use one of these, or add it."
        )
    name = cast("list[object]", names)[0] if isinstance(names, list) and names else None
    for family in FAMILIES.values():
        if name == family.ARCHITECTURE:
            return family
    return fields.refuse("architectures", f"must name one of {supported}", remedy="use a model of one of these")


def _read_generation_eos(path: Path, vocab_size: int) -> tuple[int, ...]:
    """What ends an output: generation_config.json goes before config.json, as in transformers."""
    if not path.is_file():
        return ()
    return ConfigFields(path, read_json_object(path)).token_ids("eos_token_id", None, vocab_size)
