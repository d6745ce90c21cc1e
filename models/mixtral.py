"""Mixtral: Mistral's decoder with a mixture of experts in every layer."""

from dataclasses import replace

from sarathi_jax.models import llama
from sarathi_jax.models.base_fields import Absent, read_activation, read_base, read_moe, refuse_biases
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.expert_weights import ExpertNames, moe_sources
from sarathi_jax.models.weights import ParamSource

ARCHITECTURE = "MixtralForCausalLM"
ABSENT = Absent(
    max_position_embeddings=4096 * 32,
    num_kv_heads=8,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    bos_token_id=1,
    eos_token_id=2,
)
ABSENT_NUM_EXPERTS, ABSENT_NUM_PER_TOKEN = 8, 2
NAMES = ExpertNames("block_sparse_moe", "w1", "w3", "w2")

create = llama.create


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base` and `read_moe`."""
    refuse_biases(fields, "mixtral", "attention_bias", "mlp_bias")
    if fields.get("layer_types") is not None:
        fields.refuse("layer_types", "must not be there: all layers attend alike", remedy="use another model")
    base = read_base(fields, "mixtral", ABSENT)
    return replace(
        base,
        activation=read_activation(fields, "hidden_act", "silu", ("silu",)),
        sliding_window=fields.integer_or_none("sliding_window"),
        moe=read_moe(fields, "num_local_experts", ABSENT_NUM_EXPERTS, ABSENT_NUM_PER_TOKEN, base.intermediate_size),
    )


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path -> the checkpoint tensors it is made of."""
    return llama.param_sources(config) | moe_sources(config, NAMES)
