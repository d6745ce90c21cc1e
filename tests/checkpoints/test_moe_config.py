"""config.json of models with experts: Mixtral and Qwen3-MoE, and what transformers takes absent fields to mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.checkpoints.builtin_models import BUILTIN_MODELS
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import ModelError
from sarathi_jax.models.config import ModelConfig, MoEConfig, RopeConfig

SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "intermediate_size": 96, **SIZES}
QWEN = {"architectures": ["Qwen3MoeForCausalLM"], **SIZES}


def read(folder: Path, values: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return read_model_config(folder)


def test_absent_fields_of_a_mixtral_mean_what_transformers_says(tmp_path: Path) -> None:
    assert read(tmp_path, MIXTRAL) == ModelConfig(
        family="mixtral",
        vocab_size=32,
        hidden_size=64,
        intermediate_size=96,
        num_layers=4,
        num_heads=8,
        num_kv_heads=8,
        head_dim=8,
        max_position_embeddings=131072,
        norm_eps=1e-5,
        rope=RopeConfig(theta=1e6),
        moe=MoEConfig(num_experts=8, num_experts_per_token=2, expert_size=96),
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def test_absent_fields_of_a_qwen3_moe_mean_what_transformers_says(tmp_path: Path) -> None:
    assert read(tmp_path, QWEN) == ModelConfig(
        family="qwen3_moe",
        vocab_size=32,
        hidden_size=64,
        intermediate_size=6144,
        num_layers=4,
        num_heads=8,
        num_kv_heads=4,
        head_dim=8,
        max_position_embeddings=32768,
        has_qk_norm=True,
        moe=MoEConfig(num_experts=128, num_experts_per_token=8, expert_size=768, is_normalized=False),
    )


def test_mixtral_8x7b_is_read_as_the_built_in_shape(tmp_path: Path) -> None:
    """The fields of its config.json that say something."""
    config = read(
        tmp_path,
        MIXTRAL
        | {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "vocab_size": 32000,
        },
    )
    assert config == BUILTIN_MODELS["mixtral-8x7b"]


@pytest.mark.parametrize(
    ("more", "dense_layers"),
    [
        ({"mlp_only_layers": [0, 3]}, (0, 3)),
        ({"mlp_only_layers": None, "decoder_sparse_step": 2}, (0, 2)),
        ({"mlp_only_layers": [3, 17], "decoder_sparse_step": 2}, (0, 2, 3)),
        ({"decoder_sparse_step": 3}, (0, 1, 3)),
        ({"decoder_sparse_step": 5}, (0, 1, 2, 3)),
    ],
)
def test_layers_without_experts(tmp_path: Path, more: dict[str, Any], dense_layers: tuple[int, ...]) -> None:
    config = read(tmp_path, QWEN | more)
    assert config.moe is not None
    assert config.moe.dense_layers == dense_layers
    assert [config.is_moe_layer(index) for index in range(4)] == [index not in dense_layers for index in range(4)]


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
def test_experts_by_either_name(tmp_path: Path, name: str) -> None:
    """As in the hub's files, and as transformers 5 saves them."""
    more = {name: 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": True}
    assert read(tmp_path, QWEN | more).moe == MoEConfig(num_experts=6, num_experts_per_token=3, expert_size=40)


def test_windows_of_all_layers(tmp_path: Path) -> None:
    """Of Qwens with experts too, whatever `max_window_layers` says."""
    assert read(tmp_path, MIXTRAL | {"sliding_window": 16}).sliding_window == 16
    assert read(tmp_path, QWEN | {"sliding_window": 16}).sliding_window is None
    config = read(tmp_path, QWEN | {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3})
    assert (config.sliding_window, config.window_layers) == (16, None)
    assert read(tmp_path, QWEN | {"use_sliding_window": True}).sliding_window == 4096


def test_heads_and_biases_of_a_qwen3_moe(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN | {"head_dim": 32, "attention_bias": True, "num_key_value_heads": 2})
    assert (config.head_dim, config.num_kv_heads) == (32, 2)
    assert (config.has_qkv_bias, config.has_out_bias, config.has_mlp_bias) == (True, True, False)


REFUSED: list[Any] = [
    (MIXTRAL | {"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok must be at most num_local_experts=2, got 3"),
    (MIXTRAL | {"num_local_experts": 1}, "num_experts_per_tok must be at most num_local_experts=1, got nothing"),
    (MIXTRAL | {"num_local_experts": 0}, "num_local_experts must be a whole number from 1 to .*, got 0"),
    (MIXTRAL | {"attention_bias": True}, "attention_bias must be false in a mixtral model, got True"),
    (MIXTRAL | {"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu'"),
    (MIXTRAL | {"layer_types": ["full_attention"] * 4}, "layer_types must not be there"),
    (QWEN | {"num_experts": 4}, "num_experts_per_tok must be at most num_experts=4, got nothing"),
    (QWEN | {"num_experts": "4"}, "num_experts must be a whole number .*, got '4'"),
    (QWEN | {"moe_intermediate_size": 0}, "moe_intermediate_size must be a whole number"),
    (QWEN | {"mlp_only_layers": [0, "1"]}, r"mlp_only_layers must be a list of layers, or null, got \[0, '1'\]"),
    (QWEN | {"mlp_only_layers": 1}, "mlp_only_layers must be a list of layers, or null, got 1"),
    (QWEN | {"decoder_sparse_step": 0}, "decoder_sparse_step must be a whole number from 1"),
    (QWEN | {"norm_topk_prob": 1}, "norm_topk_prob must be true or false, got 1"),
    (QWEN | {"layer_types": ["sliding_attention"] * 4}, "layer_types must all be full_attention"),
    (QWEN | {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config must not be there"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_a_wrong_field_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read(tmp_path, values)
