"""Gemma 2: embeddings scaled by sqrt(E), norms before and after attention and MLP that multiply by 1 + scale, soft caps, and a window in every other layer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models import llama
from sarathi_jax.models.attention import Attend, Attention
from sarathi_jax.models.base_fields import Absent, read_activation, read_base, read_windows
from sarathi_jax.models.config import ModelConfig, RopeConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.decoder import CausalLM, Constrain
from sarathi_jax.models.layers import GatedMLP, make_norm
from sarathi_jax.models.rope import RopeAngles
from sarathi_jax.models.weights import ParamSource, direct_source

ARCHITECTURE = "Gemma2ForCausalLM"
ABSENT = Absent(
    max_position_embeddings=8192,
    num_kv_heads=4,
    head_dim=256,
    is_head_tied=True,
    bos_token_id=2,
    eos_token_id=1,
    pad_token_id=0,
)
ABSENT_WINDOW = 4096
ABSENT_QUERY_SCALAR = 256.0
ABSENT_ATTENTION_CAP, ABSENT_LOGIT_CAP = 50.0, 30.0
# Parameters of a layer's four norms, and their tensors.
NORM_NAMES = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


class GemmaLayer(nnx.Module):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, config: ModelConfig, layer_index: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.attention_norm = make_norm(config, dtype=dtype)
        self.attention = Attention(config, layer_index, rngs=rngs, dtype=dtype)
        self.attention_post_norm = make_norm(config, dtype=dtype)
        self.mlp_norm = make_norm(config, dtype=dtype)
        self.mlp = GatedMLP(config, rngs=rngs, dtype=dtype)
        self.mlp_post_norm = make_norm(config, dtype=dtype)

    def __call__(self, x: jax.Array, angles: RopeAngles, attend: Attend, constrain: Constrain) -> jax.Array:
        x = constrain(x + self.attention_post_norm(self.attention(self.attention_norm(x), angles, attend)))
        return constrain(x + self.mlp_post_norm(self.mlp(self.mlp_norm(x))))


def create(config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> CausalLM:
    """A Gemma with random weights."""
    return CausalLM(config, GemmaLayer, rngs=rngs, dtype=dtype)


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base`, and if attention is to look ahead."""
    base = read_gemma(fields, "gemma2", ABSENT)
    size = fields.integer_or_none("sliding_window", ABSENT_WINDOW)
    windows = read_windows(fields, base.num_layers, size, range(0, base.num_layers, 2))
    return replace(
        base,
        sliding_window=windows.size,
        window_layers=windows.layers,
        attention_soft_cap=fields.number_or_none("attn_logit_softcapping", ABSENT_ATTENTION_CAP),
        logit_soft_cap=fields.number_or_none("final_logit_softcapping", ABSENT_LOGIT_CAP),
    )


def read_gemma(fields: ConfigFields, family: str, absent: Absent, rope: RopeConfig | None = None) -> ModelConfig:
    """What Gemma 2 and 3 have in common. Raises: ModelError, as `read_base`."""
    if fields.boolean("use_bidirectional_attention"):
        remedy = "use a model that generates text"
        fields.refuse("use_bidirectional_attention", "must be false: a token sees no later ones", remedy=remedy)
    base = read_base(fields, family, absent, rope)
    has_biases = fields.boolean("attention_bias")
    return replace(
        base,
        norm="rms_plus_one",
        activation=read_activation(fields, "hidden_activation", "gelu_pytorch_tanh", ("gelu_tanh",)),
        has_qkv_bias=has_biases,
        has_out_bias=has_biases,
        query_scalar=fields.number("query_pre_attn_scalar", ABSENT_QUERY_SCALAR),
        embedding_scale=base.hidden_size**0.5,
    )


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path -> the checkpoint tensors it is made of."""
    sources = llama.param_sources(config)
    for index in range(config.num_layers):
        for path, name in NORM_NAMES.items():
            source = direct_source(f"model.layers.{index}.{name}.weight", (config.hidden_size,))
            sources[f"layers.{index}.{path}.scale"] = source
    return sources
