"""Configurations of Phi-3 and Phi-4: what transformers takes absent fields to mean, LongRoPE in every spelling, heads rotated in part, clear refusals."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import ModelError
from sarathi_jax.models import ModelConfig
from sarathi_jax.models.config import RopeConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "data"
PHI: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
SHORT, LONG = (1.0, 1.0, 1.5, 2.0), (1.0, 2.0, 4.0, 8.0)
FACTORS = {"short_factor": list(SHORT), "long_factor": list(LONG)}
LONGROPE = {"rope_scaling": {"type": "longrope", **FACTORS}, "max_position_embeddings": 131072}
# Of a context 32 times as long: sqrt(1 + ln 32 / ln 4096).
FACTOR_32 = math.sqrt(1 + 5 / 12)


def longrope(pairs: int, trained: int, attention_factor: float) -> RopeConfig:
    return RopeConfig(
        kind="longrope",
        original_max_position=trained,
        attention_factor=attention_factor,
        short_factors=tuple(1.0 + 0.05 * pair for pair in range(pairs)),
        long_factors=tuple(1.0 + 0.75 * pair * pair for pair in range(pairs)),
    )


TEN_TIMES = math.sqrt(1 + math.log(10) / math.log(16))
# (rope, rotated elements of a head, window)
GOLDEN_CONFIGS: dict[str, tuple[RopeConfig, int | None, int | None]] = {
    "phi3-plain": (RopeConfig(theta=250000.0), None, None),
    "phi3-window-old": (RopeConfig(), None, 13),
    "phi3-partial-gqa3": (RopeConfig(), 12, 4096),
    "phi3-partial-head-dim": (RopeConfig(theta=2000.0), 8, None),
    "phi3-longrope-within": (longrope(4, 140, math.sqrt(1 + math.log(160 / 140) / math.log(140))), None, None),
    "phi3-longrope-past": (longrope(6, 16, TEN_TIMES), None, 31),
    "phi3-longrope-partial-old": (longrope(6, 16, TEN_TIMES), 12, None),
    "phi3-longrope-attention-factor": (longrope(2, 16, 1.3), None, None),
    "phi3-longrope-factor": (longrope(4, 140, math.sqrt(1 + math.log(3) / math.log(140))), None, None),
}


def test_every_golden_configuration_is_listed_here() -> None:
    names = {path.parent.name for path in GOLDEN.glob("*/config.json")}
    assert {name for name in names if name.startswith("phi3-")} == set(GOLDEN_CONFIGS)


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_golden_configurations_are_read_as_they_were_meant(name: str) -> None:
    config = read_model_config(GOLDEN / name)
    assert (config.rope, config.rotary_dim, config.sliding_window) == GOLDEN_CONFIGS[name]


def test_absent_fields_mean_what_transformers_says(read_config: Callable[..., ModelConfig]) -> None:
    assert read_config(PHI) == ModelConfig(
        family="phi3",
        vocab_size=32064,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=8,
        num_kv_heads=8,
        head_dim=8,
        max_position_embeddings=4096,
        norm_eps=1e-5,
        bos_token_id=1,
        eos_token_ids=(32000,),
        pad_token_id=32000,
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (4096, FACTOR_32)),
        ({"original_max_position_embeddings": 131072}, (131072, 1.0)),
        ({"rope_scaling": {"type": "su", **FACTORS}}, (4096, FACTOR_32)),
        ({"rope_scaling": {"type": "yarn", **FACTORS}}, (4096, FACTOR_32)),
        ({"rope_scaling": {"rope_type": "longrope", **FACTORS, "factor": 1.0}}, (4096, 1.0)),
        ({"rope_scaling": {"rope_type": "longrope", **FACTORS, "factor": 32, "attention_factor": 2}}, (4096, 2.0)),
        # What stands outside goes first, and outside there is 4096 where the file says nothing.
        ({"rope_scaling": {"type": "longrope", **FACTORS, "original_max_position_embeddings": 8}}, (4096, FACTOR_32)),
    ],
)
def test_longrope_in_every_spelling(
    read_config: Callable[..., ModelConfig], more: dict[str, Any], expected: tuple[int, float]
) -> None:
    rope = read_config(PHI | LONGROPE | more).rope
    base = RopeConfig(kind="longrope", short_factors=SHORT, long_factors=LONG, original_max_position=expected[0])
    assert rope == replace(base, attention_factor=pytest.approx(expected[1]))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"partial_rotary_factor": 0.5}, 4),
        ({"partial_rotary_factor": 0.8}, 6),  # of 6.4
        ({"partial_rotary_factor": 1.0}, None),
        ({"rope_parameters": {"partial_rotary_factor": 0.25, "rope_type": "default"}}, 2),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}, "partial_rotary_factor": 0.5}, 2),
        ({"head_dim": 16, "partial_rotary_factor": 0.75}, 12),
    ],
)
def test_a_part_of_a_head_may_be_rotated(
    read_config: Callable[..., ModelConfig], more: dict[str, Any], expected: int | None
) -> None:
    assert read_config(PHI | more).rotary_dim == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type must be one of default, longrope, su, yarn"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 4}}, "rope_scaling.short_factor must be a list of finite numbers > 0, got nothing"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [1.0] * 3}}, "rope_scaling.long_factor must have 4 numbers, one for each rotated pair"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "short_factor": [1.0, 0, 1.0, 1.0]}}, "rope_scaling.short_factor must be a list of finite numbers > 0"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "short_factor": ["1"] * 4}}, "rope_scaling.short_factor must be a list of finite numbers > 0"),
        ({"rope_scaling": {"type": "longrope", **FACTORS}, "partial_rotary_factor": 0.5}, "rope_scaling.short_factor must have 2 numbers"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "short_mscale": 1.1}}, "rope_scaling.short_mscale is no field of rope type 'longrope'"),
        ({"partial_rotary_factor": 0.4}, "partial_rotary_factor must make an even part of head_dim=8"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must make an even part of head_dim=8"),
        ({"rope_parameters": {"partial_rotary_factor": 0.01}}, "rope_parameters.partial_rotary_factor must make an even part"),
        ({"attention_bias": True}, "attention_bias must be false in a phi3 model"),
        ({"mlp_bias": True}, "mlp_bias must be false in a phi3 model"),
        ({"lm_head_bias": True}, "lm_head_bias must be false in a phi3 model"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types must not be there"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu"),
        ({"sliding_window": 0}, "sliding_window must be a whole number from 1"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(
    read_config: Callable[..., ModelConfig], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read_config(PHI | more)


def test_a_trained_length_of_one_token_is_no_length_to_divide_by(read_config: Callable[..., ModelConfig]) -> None:
    rope = read_config(PHI | LONGROPE | {"original_max_position_embeddings": 1}).rope
    assert (rope.original_max_position, rope.attention_factor) == (1, 1.0)
