"""Falcon: attention and MLP side by side (7B, 40B, 180B, Falcon2-11B), or one after the other.

Its fused projection lies in the file as the parameter does, whatever the number of KV heads: each KV head's queries, then its key and its value.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.models.attention import Attend, Attention
from sarathi_jax.models.base_fields import Absent, read_activation, read_base
from sarathi_jax.models.config import BlockKind, ModelConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.decoder import CausalLM, Constrain
from sarathi_jax.models.layers import PlainMLP, make_norm
from sarathi_jax.models.rope import RopeAngles
from sarathi_jax.models.weights import ParamSource, direct_source, fused_qkv_source, out_source, transposed_source

ARCHITECTURE = "FalconForCausalLM"
ABSENT = Absent(max_position_embeddings=2048, rms_norm_eps=1e-5, is_head_tied=True, bos_token_id=11, eos_token_id=11)
SPELLING = {
    "intermediate_size": "ffn_hidden_size",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "layer_norm_epsilon",
}
# Of attention and MLP.
NORM_NAMES: dict[BlockKind, tuple[str, str | None]] = {
    "sequential": ("input_layernorm", "post_attention_layernorm"),
    "parallel": ("ln_attn", "ln_mlp"),
    "parallel_one_norm": ("input_layernorm", None),
}
MLP_WIDTH = 4  # in hidden sizes, where the file gives none


class FalconLayer(nnx.Module):
    """x + (attention(norm(x)) + mlp(norm(x))), of one norm or of two; or, `sequential`, one after the other.

    Cut over heads and MLP width, both terms are sums over devices. They cost one all-reduce: XLA adds them up before it.
    """

    def __init__(self, config: ModelConfig, layer_index: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.attention_norm = make_norm(config, dtype=dtype)
        self.attention = Attention(config, layer_index, rngs=rngs, dtype=dtype)
        self.mlp_norm = None if config.block == "parallel_one_norm" else make_norm(config, dtype=dtype)
        self.mlp = PlainMLP(config, rngs=rngs, dtype=dtype)
        self.is_parallel = config.block != "sequential"

    def __call__(self, x: jax.Array, angles: RopeAngles, attend: Attend, constrain: Constrain) -> jax.Array:
        normed = self.attention_norm(x)
        attended = self.attention(normed, angles, attend)
        if self.mlp_norm is None:
            return constrain(x + (attended + self.mlp(normed)))
        if self.is_parallel:
            return constrain(x + (attended + self.mlp(self.mlp_norm(x))))
        x = constrain(x + attended)
        return constrain(x + self.mlp(self.mlp_norm(x)))


def create(config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> CausalLM:
    """A Falcon with random weights."""
    return CausalLM(config, FalconLayer, rngs=rngs, dtype=dtype)


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_base`, and if the model has ALiBi's biases in place of rotary embeddings."""
    fields = fields.spelled(SPELLING | ({"hidden_size": "n_embed"} if "n_embed" in fields else {}))
    if fields.boolean("alibi"):
        fields.refuse("alibi", "must be false: ALiBi is not implemented", remedy="use a Falcon with rotary embeddings")
    for name in ("head_dim", "apply_residual_connection_post_layernorm"):
        if fields.get(name):
            fields.refuse(name, "must not be in a falcon model", remedy="use another model")
    has_biases = fields.boolean("bias")
    base = read_base(fields, "falcon", ABSENT._replace(intermediate_size=MLP_WIDTH * fields.integer("hidden_size")))
    return replace(
        base,
        num_kv_heads=_read_num_kv_heads(fields, base),
        norm="layer",
        activation=read_activation(fields, "activation", "gelu", ("gelu", "gelu_tanh", "silu")),
        is_mlp_gated=False,
        block=_read_block(fields),
        has_qkv_bias=has_biases,
        has_out_bias=has_biases,
        has_mlp_bias=has_biases,
    )


def _read_num_kv_heads(fields: ConfigFields, base: ModelConfig) -> int:
    """Only the new architecture looks at `num_kv_heads`; before it there was one KV head, or one for every query head."""
    if fields.boolean("new_decoder_architecture"):
        return base.num_kv_heads
    if fields.boolean("multi_query", True):
        return 1
    if base.num_kv_heads != base.num_heads:
        fields.refuse(
            "num_key_value_heads", f"must be num_attention_heads={base.num_heads} without new_decoder_architecture"
        )
    return base.num_heads


def _read_block(fields: ConfigFields) -> BlockKind:
    name, is_new = "num_ln_in_parallel_attn", fields.boolean("new_decoder_architecture")
    if not fields.boolean("parallel_attn", True):
        if is_new:
            fields.refuse("parallel_attn", "must be true with new_decoder_architecture")
        return "sequential"
    num_norms = fields.integer_or_none(name) or (2 if is_new else 1)
    if num_norms > (2 if is_new else 1):
        fields.refuse(name, "must be 1, or 2 with new_decoder_architecture")
    return "parallel" if num_norms == 2 else "parallel_one_norm"


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path -> the checkpoint tensors it is made of."""
    embed = config.hidden_size
    sources = {
        "embedding.embedding": direct_source("transformer.word_embeddings.weight", (config.vocab_size, embed)),
        **_norm_sources("norm", "transformer.ln_f", embed),
    }
    if not config.is_head_tied:
        sources["head.kernel"] = transposed_source("lm_head.weight", (embed, config.vocab_size))
    for index in range(config.num_layers):
        layer = _layer_sources(config, f"transformer.h.{index}")
        sources |= {f"layers.{index}.{path}": source for path, source in layer.items()}
    return sources


def _layer_sources(config: ModelConfig, prefix: str) -> dict[str, ParamSource]:
    embed, mlp = config.hidden_size, config.intermediate_size
    attention, up, down = f"{prefix}.self_attention", f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h"
    sources = {
        "attention.qkv.kernel": fused_qkv_source(config, f"{attention}.query_key_value.weight", "weight"),
        "attention.out.kernel": out_source(config, f"{attention}.dense.weight"),
        "mlp.up.kernel": transposed_source(f"{up}.weight", (embed, mlp)),
        "mlp.down.kernel": transposed_source(f"{down}.weight", (mlp, embed)),
    }
    first, second = NORM_NAMES[config.block]
    sources |= _norm_sources("attention_norm", f"{prefix}.{first}", embed)
    if second is not None:
        sources |= _norm_sources("mlp_norm", f"{prefix}.{second}", embed)
    if config.has_qkv_bias:
        sources["attention.qkv.bias"] = fused_qkv_source(config, f"{attention}.query_key_value.bias", "bias")
        sources["attention.out.bias"] = direct_source(f"{attention}.dense.bias", (embed,))
        sources["mlp.up.bias"] = direct_source(f"{up}.bias", (mlp,))
        sources["mlp.down.bias"] = direct_source(f"{down}.bias", (embed,))
    return sources


def _norm_sources(path: str, name: str, size: int) -> dict[str, ParamSource]:
    return {
        f"{path}.scale": direct_source(f"{name}.weight", (size,)),
        f"{path}.bias": direct_source(f"{name}.bias", (size,)),
    }
