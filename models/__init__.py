"""Flax NNX models: configuration, layers, one decoder, one file a family."""

from collections.abc import Mapping
from typing import Protocol

import jax.numpy as jnp
from flax import nnx

from sarathi_jax.errors import ModelError
from sarathi_jax.models import (
    falcon,
    gemma2,
    gemma3,
    gemma3_images,
    llama,
    mistral,
    mixtral,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.decoder import CausalLM, causal_lm_logits
from sarathi_jax.models.generative import GenerativeModel, check_model
from sarathi_jax.models.weights import ParamSource


class MakeModel(Protocol):
    """Builds a model with random weights."""

    def __call__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> CausalLM: ...


class Family(Protocol):
    """What a family's file holds. ARCHITECTURE: its class in transformers.

    It may also hold IGNORED_PREFIXES: see `ignored_prefixes`.
    """

    @property
    def ARCHITECTURE(self) -> str: ...  # noqa: N802 - a constant of the module

    @property
    def create(self) -> MakeModel: ...

    def read_config(self, fields: ConfigFields) -> ModelConfig: ...

    def param_sources(self, config: ModelConfig) -> dict[str, ParamSource]: ...


# By transformers' `model_type`.
FAMILIES: Mapping[str, Family] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gemma3": gemma3_images,
    "phi3": phi3,
    "falcon": falcon,
    "mixtral": mixtral,
    "qwen3_moe": qwen3_moe,
}

__all__ = [
    "FAMILIES",
    "CausalLM",
    "Family",
    "GenerativeModel",
    "ModelConfig",
    "causal_lm_logits",
    "check_model",
    "create_model",
    "ignored_prefixes",
    "param_sources",
]


def create_model(config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> CausalLM:
    """Build a model with random weights; under `nnx.eval_shape`, its shapes alone. Raises: ModelError if its family is unknown."""
    return _family(config).create(config, rngs=rngs, dtype=dtype)


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path, as in "layers.0.attention.qkv.kernel" -> the checkpoint tensors it is made of. Raises: as `create_model`."""
    return _family(config).param_sources(config)


def ignored_prefixes(config: ModelConfig) -> tuple[str, ...]:
    """Of names of tensors that a checkpoint may hold and that the model has no use for. Raises: as `create_model`."""
    return getattr(_family(config), "IGNORED_PREFIXES", ())


def _family(config: ModelConfig) -> Family:
    if config.family not in FAMILIES:
        raise ModelError(
            f"The family must be one of {', '.join(FAMILIES)}, got {config.family!r}: choose one of these."
        )
    return FAMILIES[config.family]
