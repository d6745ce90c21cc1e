"""Phi-3 and Phi-4: Llama's decoder with its products joined in the checkpoint, heads that may be rotated in part, and LongRoPE.

LongRoPE has two sets of frequencies, for sequences within the trained length and for longer ones. A set can't be changed while keys are in a cache, so that one
is taken for all: the long one if the longest sequence that a run allows (`max_model_len`) is past the trained length.
"""

from dataclasses import replace

from sarathi_jax.models import llama
from sarathi_jax.models.base_fields import Absent, read_activation, read_base, read_head_dim, refuse_biases
from sarathi_jax.models.config import ModelConfig, RopeConfig, RopeKind
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.rope_fields import DEFAULT_THETA, given_scaling, read_scaling
from sarathi_jax.models.weights import ParamSource, joined_gate_up_source, joined_qkv_source

ARCHITECTURE = "Phi3ForCausalLM"
ABSENT = Absent(max_position_embeddings=4096, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=32000, pad_token_id=32000)
ABSENT_TRAINED_LENGTH = 4096
# What the first folders call LongRoPE is here too.
ROPE_KINDS: dict[str, RopeKind] = {
    "default": "default",
    "longrope": "longrope",
    "su": "longrope",
    "yarn": "longrope",
}

create = llama.create


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base`, and if the factors of LongRoPE are not one for each rotated pair."""
    refuse_biases(fields, "phi3", "attention_bias", "mlp_bias", "lm_head_bias")
    if fields.get("layer_types") is not None:
        fields.refuse("layer_types", "must not be there: all layers attend alike", remedy="use another model")
    rotary_dim = _read_rotary_dim(fields)
    base = read_base(fields, "phi3", ABSENT, _read_rope(fields, rotary_dim))
    return replace(
        base,
        activation=read_activation(fields, "hidden_act", "silu", ("silu",)),
        rotary_dim=None if rotary_dim == base.head_dim else rotary_dim,
        sliding_window=fields.integer_or_none("sliding_window"),
    )


def _read_rotary_dim(fields: ConfigFields) -> int:
    name, head_dim = "partial_rotary_factor", read_head_dim(fields, fields.integer("num_attention_heads"))
    scaling = given_scaling(fields)
    holder = scaling if scaling is not None and name in scaling else fields
    rotary_dim = int(head_dim * holder.number(name, 1.0))
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        holder.refuse(name, f"must make an even part of head_dim={head_dim}, from 2 to all of it")
    return rotary_dim


def _read_rope(fields: ConfigFields, rotary_dim: int) -> RopeConfig:
    fields = fields.with_absent({"original_max_position_embeddings": ABSENT_TRAINED_LENGTH})
    scaling = given_scaling(fields)
    max_positions = fields.integer_or_none("max_position_embeddings") or ABSENT.max_position_embeddings
    theta = fields.number("rope_theta", DEFAULT_THETA, over=1.0)
    rope = read_scaling(fields, scaling, max_positions, theta, ROPE_KINDS)
    if rope.kind == "longrope" and scaling is not None:
        for name, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
            if len(factors) != rotary_dim // 2:
                scaling.refuse(name, f"must have {rotary_dim // 2} numbers, one for each rotated pair of elements")
    return rope


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path -> the checkpoint tensors it is made of."""
    sources = llama.param_sources(config)
    for index in range(config.num_layers):
        path, prefix = f"layers.{index}", f"model.layers.{index}"
        sources |= {
            f"{path}.attention.qkv.kernel": joined_qkv_source(config, f"{prefix}.self_attn.qkv_proj.weight", "weight"),
            f"{path}.mlp.gate_up.kernel": joined_gate_up_source(config, f"{prefix}.mlp.gate_up_proj.weight", "weight"),
        }
    return sources
