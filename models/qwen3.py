"""Qwen3, the dense models: Llama's decoder with normalized queries and keys, and heads of a width of their own."""

from dataclasses import replace

from sarathi_jax.models import llama
from sarathi_jax.models.base_fields import Absent, read_activation, read_base
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.qwen2 import read_qwen_windows, refuse_extensions

ARCHITECTURE = "Qwen3ForCausalLM"
ABSENT = Absent(max_position_embeddings=32768, num_kv_heads=32, head_dim=128)

create = llama.create
param_sources = llama.param_sources


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base`, and as `refuse_extensions`."""
    base = read_base(fields, "qwen3", ABSENT)
    refuse_extensions(fields)
    windows = read_qwen_windows(fields, base.num_layers)
    has_biases = fields.boolean("attention_bias")
    return replace(
        base,
        activation=read_activation(fields, "hidden_act", "silu", ("silu",)),
        has_qk_norm=True,
        has_qkv_bias=has_biases,
        has_out_bias=has_biases,
        sliding_window=windows.size,
        window_layers=windows.layers,
    )
