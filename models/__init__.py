"""Flax NNX models: configuration, layers, one decoder, one file a family."""

from types import ModuleType

import jax.numpy as jnp
from flax import nnx

from sarathi_jax.errors import ModelError
from sarathi_jax.models import llama
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.decoder import CausalLM, causal_lm_logits
from sarathi_jax.models.weights import ParamSource

FAMILIES = {"llama": llama, "mistral": llama}

__all__ = ["FAMILIES", "CausalLM", "ModelConfig", "causal_lm_logits", "create_model", "param_sources"]


def create_model(config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> CausalLM:
    """Build a model with random weights; under `nnx.eval_shape`, its shapes alone. Raises: ModelError if its family is unknown."""
    return _family(config).create(config, rngs=rngs, dtype=dtype)


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path, as in "layers.0.attention.qkv.kernel" -> the checkpoint tensors it is made of. Raises: as `create_model`."""
    return _family(config).param_sources(config)


def _family(config: ModelConfig) -> ModuleType:
    if config.family not in FAMILIES:
        raise ModelError(
            f"The family must be one of {', '.join(FAMILIES)}, got {config.family!r}: choose one of these."
        )
    return FAMILIES[config.family]
