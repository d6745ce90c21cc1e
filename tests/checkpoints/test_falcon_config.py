"""config.json of Falcons: names of its own, two architectures, and what transformers takes absent fields to mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.checkpoints.builtin_models import BUILTIN_MODELS
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import ModelError
from sarathi_jax.models.config import ModelConfig, RopeConfig

FALCON: dict[str, Any] = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
GROUPED = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}


def read(folder: Path, values: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return read_model_config(folder)


def test_absent_fields_of_a_falcon_mean_what_transformers_says(tmp_path: Path) -> None:
    assert read(tmp_path, FALCON) == ModelConfig(
        family="falcon",
        vocab_size=32,
        hidden_size=64,
        intermediate_size=256,
        num_layers=2,
        num_heads=8,
        num_kv_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        norm="layer",
        norm_eps=1e-5,
        activation="gelu",
        is_mlp_gated=False,
        block="parallel_one_norm",
        is_head_tied=True,
        bos_token_id=11,
        eos_token_ids=(11,),
    )


def test_falcon_180b_is_read_as_the_built_in_shape(tmp_path: Path) -> None:
    """The fields of its config.json that say something."""
    config = read(
        tmp_path,
        FALCON
        | {
            "alibi": False,
            "bias": False,
            "bos_token_id": 11,
            "eos_token_id": 11,
            "hidden_size": 14848,
            "layer_norm_epsilon": 1e-5,
            "multi_query": True,
            "new_decoder_architecture": True,
            "num_attention_heads": 232,
            "num_hidden_layers": 80,
            "num_kv_heads": 8,
            "parallel_attn": True,
            "torch_dtype": "bfloat16",
            "vocab_size": 65024,
        },
    )
    assert config == BUILTIN_MODELS["falcon-180b"]


@pytest.mark.parametrize(
    ("values", "num_kv_heads", "block"),
    [
        (FALCON | {"num_kv_heads": 4}, 1, "parallel_one_norm"),
        (FALCON | {"multi_query": False}, 8, "parallel_one_norm"),
        (FALCON | {"multi_query": False, "parallel_attn": False}, 8, "sequential"),
        (FALCON | {"parallel_attn": False, "num_ln_in_parallel_attn": 2}, 1, "sequential"),
        (GROUPED, 2, "parallel"),
        (GROUPED | {"multi_query": False}, 2, "parallel"),
        (GROUPED | {"num_kv_heads": None}, 8, "parallel"),
        (GROUPED | {"num_ln_in_parallel_attn": 1}, 2, "parallel_one_norm"),
        (GROUPED | {"num_ln_in_parallel_attn": 2}, 2, "parallel"),
    ],
)
def test_heads_and_norms_of_each_architecture(
    tmp_path: Path, values: dict[str, Any], num_kv_heads: int, block: str
) -> None:
    config = read(tmp_path, values)
    assert (config.num_kv_heads, config.block) == (num_kv_heads, block)


def test_fields_have_falcons_names(tmp_path: Path) -> None:
    more = {
        "ffn_hidden_size": 96,
        "layer_norm_epsilon": 1e-3,
        "activation": "gelu_new",
        "bias": True,
        "rope_theta": 5e5,
    }
    config = read(tmp_path, FALCON | {"n_embed": 128} | more)
    assert (config.hidden_size, config.intermediate_size, config.norm_eps) == (128, 96, 1e-3)
    assert (config.activation, config.rope) == ("gelu_tanh", RopeConfig(theta=5e5))
    assert (config.has_qkv_bias, config.has_out_bias, config.has_mlp_bias) == (True, True, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"alibi": True}, "alibi must be false: ALiBi is not implemented, got True: use a Falcon with rotary"),
        (
            {"num_ln_in_parallel_attn": 2},
            "num_ln_in_parallel_attn must be 1, or 2 with new_decoder_architecture, got 2",
        ),
        (
            {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3},
            "num_ln_in_parallel_attn must be 1, or 2 with new_decoder_architecture, got 3",
        ),
        (
            {"new_decoder_architecture": True, "parallel_attn": False},
            "parallel_attn must be true with new_decoder_architecture, got False",
        ),
        (
            {"multi_query": False, "num_kv_heads": 2},
            "num_kv_heads must be num_attention_heads=8 without new_decoder_architecture, got 2",
        ),
        (
            {"new_decoder_architecture": True, "num_kv_heads": 3},
            "num_attention_heads=8 must be a multiple of num_kv_heads=3",
        ),
        ({"activation": "relu"}, "activation must be gelu or gelu_tanh or silu, got 'relu'"),
        ({"head_dim": 16}, "head_dim must not be in a falcon model, got 16"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm must not be"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a finite number > 0, got 0"),
        ({"ffn_hidden_size": -1}, "ffn_hidden_size must be a whole number"),
        ({"hidden_size": None}, "hidden_size must be a whole number .*, got None: add it"),
        ({"n_embed": 0}, "n_embed must be a whole number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    ],
)
def test_a_wrong_field_is_named_as_the_file_has_it(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read(tmp_path, FALCON | more)
