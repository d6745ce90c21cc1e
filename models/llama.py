"""Llama 1, 2 and 3, and Yi: the plain decoder. Names of its weights, which most families share."""

from dataclasses import replace

from sarathi_jax.models.base_fields import Absent, read_activation, read_base, refuse_layer_types
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.decoder import CausalLM
from sarathi_jax.models.weights import (
    ParamSource,
    direct_source,
    gate_up_source,
    out_source,
    qkv_source,
    transposed_source,
)

ARCHITECTURE = "LlamaForCausalLM"
ABSENT = Absent(max_position_embeddings=2048, bos_token_id=1, eos_token_id=2)

create = CausalLM


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base`."""
    refuse_layer_types(fields, "full_attention")
    has_biases = fields.boolean("attention_bias")
    return replace(
        read_base(fields, "llama", ABSENT),
        activation=read_activation(fields, "hidden_act", "silu", ("silu",)),
        has_qkv_bias=has_biases,
        has_out_bias=has_biases,
        has_mlp_bias=fields.boolean("mlp_bias"),
    )


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path -> the checkpoint tensors it is made of."""
    sources = {
        "embedding.embedding": direct_source("model.embed_tokens.weight", (config.vocab_size, config.hidden_size)),
        "norm.scale": direct_source("model.norm.weight", (config.hidden_size,)),
    }
    if not config.is_head_tied:
        sources["head.kernel"] = transposed_source("lm_head.weight", (config.hidden_size, config.vocab_size))
    for index in range(config.num_layers):
        layer = _layer_sources(config, f"model.layers.{index}")
        sources |= {f"layers.{index}.{path}": source for path, source in layer.items()}
    return sources


def _layer_sources(config: ModelConfig, prefix: str) -> dict[str, ParamSource]:
    embed, mlp = config.hidden_size, config.intermediate_size
    attention, mlp_prefix = f"{prefix}.self_attn", f"{prefix}.mlp"
    sources = {
        "attention_norm.scale": direct_source(f"{prefix}.input_layernorm.weight", (embed,)),
        "attention.qkv.kernel": qkv_source(config, attention, "weight"),
        "attention.out.kernel": out_source(config, f"{attention}.o_proj.weight"),
        "mlp_norm.scale": direct_source(f"{prefix}.post_attention_layernorm.weight", (embed,)),
        "mlp.gate_up.kernel": gate_up_source(config, mlp_prefix, "weight"),
        "mlp.down.kernel": transposed_source(f"{mlp_prefix}.down_proj.weight", (mlp, embed)),
    }
    if config.has_qkv_bias:
        sources["attention.qkv.bias"] = qkv_source(config, attention, "bias")
    if config.has_qk_norm:
        for name in ("q_norm", "k_norm"):
            sources[f"attention.{name}.scale"] = direct_source(f"{attention}.{name}.weight", (config.head_dim,))
    if config.has_out_bias:
        sources["attention.out.bias"] = direct_source(f"{attention}.o_proj.bias", (embed,))
    if config.has_mlp_bias:
        sources["mlp.gate_up.bias"] = gate_up_source(config, mlp_prefix, "bias")
        sources["mlp.down.bias"] = direct_source(f"{mlp_prefix}.down_proj.bias", (embed,))
    return sources
