"""Mistral: Llama's decoder with a sliding window in every layer."""

from dataclasses import replace

from sarathi_jax.models import llama
from sarathi_jax.models.base_fields import Absent, read_activation, read_base, refuse_biases
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields

ARCHITECTURE = "MistralForCausalLM"
ABSENT = Absent(max_position_embeddings=4096 * 32, num_kv_heads=8, bos_token_id=1, eos_token_id=2)
ABSENT_WINDOW = 4096

create = llama.create
param_sources = llama.param_sources


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base`."""
    refuse_biases(fields, "mistral", "attention_bias", "mlp_bias")
    if fields.get("layer_types") is not None:
        fields.refuse("layer_types", "must not be there: all layers attend alike", remedy="use another model")
    return replace(
        read_base(fields, "mistral", ABSENT),
        activation=read_activation(fields, "hidden_act", "silu", ("silu",)),
        sliding_window=fields.integer_or_none("sliding_window", ABSENT_WINDOW),
    )
