"""Qwen3-MoE: Qwen3's decoder with mixtures of many small experts, in all layers or in some."""

from dataclasses import replace
from typing import cast

from sarathi_jax.models import llama
from sarathi_jax.models.base_fields import Absent, read_activation, read_base, read_moe, refuse_layer_types
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.expert_weights import ExpertNames, moe_sources
from sarathi_jax.models.qwen2 import ABSENT_WINDOW, refuse_extensions
from sarathi_jax.models.weights import ParamSource

ARCHITECTURE = "Qwen3MoeForCausalLM"
ABSENT = Absent(max_position_embeddings=32768, intermediate_size=6144, num_kv_heads=4)
ABSENT_NUM_EXPERTS, ABSENT_NUM_PER_TOKEN, ABSENT_EXPERT_SIZE = 128, 8, 768
# As the hub's files have it, and as transformers 5 writes it.
NUM_EXPERTS_NAMES = ("num_experts", "num_local_experts")
NAMES = ExpertNames("mlp", "gate_proj", "up_proj", "down_proj")

create = llama.create


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base`, `read_moe` and `refuse_extensions`."""
    base = read_base(fields, "qwen3_moe", ABSENT)
    refuse_extensions(fields)
    # Unlike other Qwens' it is in all layers.
    window = fields.integer_or_none("sliding_window", ABSENT_WINDOW) if fields.boolean("use_sliding_window") else None
    refuse_layer_types(fields, "full_attention" if window is None else "sliding_attention")
    name = next((name for name in NUM_EXPERTS_NAMES if name in fields), NUM_EXPERTS_NAMES[0])
    size = fields.integer_or_none("moe_intermediate_size", ABSENT_EXPERT_SIZE) or ABSENT_EXPERT_SIZE
    moe = read_moe(fields, name, ABSENT_NUM_EXPERTS, ABSENT_NUM_PER_TOKEN, size)
    has_biases = fields.boolean("attention_bias")
    return replace(
        base,
        activation=read_activation(fields, "hidden_act", "silu", ("silu",)),
        has_qk_norm=True,
        has_qkv_bias=has_biases,
        has_out_bias=has_biases,
        sliding_window=window,
        moe=replace(
            moe,
            is_normalized=fields.boolean("norm_topk_prob"),
            dense_layers=_read_dense_layers(fields, base.num_layers),
        ),
    )


def _read_dense_layers(fields: ConfigFields, num_layers: int) -> tuple[int, ...]:
    """Those that are listed, and those between every `decoder_sparse_step`-th."""
    listed, step = fields.get("mlp_only_layers") or [], fields.integer_or_none("decoder_sparse_step", 1) or 1
    if not isinstance(listed, list) or not all(type(each) is int for each in cast("list[object]", listed)):
        fields.refuse("mlp_only_layers", "must be a list of layers, or null")
    return tuple(index for index in range(num_layers) if index in listed or (index + 1) % step)


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path -> the checkpoint tensors it is made of."""
    return llama.param_sources(config) | moe_sources(config, NAMES)
