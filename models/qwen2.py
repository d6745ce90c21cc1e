"""Qwen2 and Qwen2.5: Llama's decoder with biases on queries, keys and values, and, if it is asked for, a sliding window in its upper layers."""

from dataclasses import replace

from sarathi_jax.models import llama
from sarathi_jax.models.base_fields import Absent, Windows, read_activation, read_base, read_windows
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields

ARCHITECTURE = "Qwen2ForCausalLM"
ABSENT = Absent(max_position_embeddings=32768, num_kv_heads=32)
ABSENT_WINDOW = 4096
ABSENT_FIRST_WINDOW_LAYER = 28

create = llama.create
param_sources = llama.param_sources


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base`, and if the file asks for attention in two chunks, or for positions of images."""
    base = read_base(fields, "qwen2", ABSENT)
    refuse_extensions(fields)
    windows = read_qwen_windows(fields, base.num_layers)
    return replace(
        base,
        activation=read_activation(fields, "hidden_act", "silu", ("silu",)),
        has_qkv_bias=True,
        sliding_window=windows.size,
        window_layers=windows.layers,
    )


def read_qwen_windows(fields: ConfigFields, num_layers: int) -> Windows:
    """Windows are in use only if `use_sliding_window` says so, and then in the layers from `max_window_layers` on, or those of `layer_types`."""
    size = fields.integer_or_none("sliding_window", ABSENT_WINDOW) if fields.boolean("use_sliding_window") else None
    first = fields.integer_or_none("max_window_layers", ABSENT_FIRST_WINDOW_LAYER, least=0) or 0
    return read_windows(fields, num_layers, size, range(first, num_layers) if size else ())


def refuse_extensions(fields: ConfigFields) -> None:
    """Raises: ModelError if the file asks for what Qwen's own code has and no implementation here."""
    if fields.get("dual_chunk_attention_config") is not None:
        remedy = "remove it, which is right up to the length that the model was trained at"
        fields.refuse("dual_chunk_attention_config", "must not be there: it is not implemented", remedy=remedy)
    if fields.boolean("use_mrope"):
        fields.refuse("use_mrope", "must be false: positions are numbers of tokens", remedy="use another model")
