"""Configurations of Qwen2 and Qwen3: what transformers takes absent fields to mean, windows by layer, clear refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import ModelError
from sarathi_jax.models import ModelConfig
from sarathi_jax.models.config import RopeConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "data"
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
}
QWEN2: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **SIZES}
QWEN3: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **SIZES}
YARN = {"kind": "yarn", "theta": 1e6, "factor": 4.0, "original_max_position": 40}
# (rope, windows by layer)
GOLDEN_CONFIGS: dict[str, tuple[RopeConfig, list[int | None]]] = {
    "qwen2-plain": (RopeConfig(), [None, None]),
    "qwen2-gqa3-head12": (RopeConfig(theta=1e6), [None, None]),
    "qwen2-upper-window-old": (RopeConfig(), [None, 11, 11]),
    "qwen2-listed-window": (RopeConfig(), [19, None, 19]),
    "qwen2-linear": (RopeConfig(kind="linear", factor=3.0), [33, 33]),
    "qwen2-dynamic": (RopeConfig(kind="dynamic", factor=2.0, original_max_position=80), [None, None]),
    "qwen2-llama3": (RopeConfig(kind="llama3", factor=4.0, original_max_position=48), [None, None]),
    "qwen2-yarn-old": (RopeConfig(**YARN), [None]),
    "qwen3-plain": (RopeConfig(), [None, None]),
    "qwen3-gqa5-head24": (RopeConfig(theta=1e6), [None, None]),
    "qwen3-biases": (RopeConfig(), [None, None]),
    "qwen3-upper-window-old": (RopeConfig(), [None, None, 13]),
    "qwen3-listed-window": (RopeConfig(kind="linear", factor=2.0), [None, 27, 27]),
    "qwen3-dynamic": (RopeConfig(kind="dynamic", theta=2e4, factor=2.0, original_max_position=80), [None, None]),
    "qwen3-llama3": (RopeConfig(kind="llama3", theta=5e5, factor=8.0, original_max_position=32), [None, None]),
    "qwen3-yarn": (RopeConfig(**YARN, attention_factor=0.9), [None]),
}


def windows(config: ModelConfig) -> list[int | None]:
    return [config.window(index) for index in range(config.num_layers)]


def test_every_golden_configuration_is_listed_here() -> None:
    names = {path.parent.name for path in GOLDEN.glob("*/config.json")}
    assert {name for name in names if name.startswith(("qwen2-", "qwen3-"))} == set(GOLDEN_CONFIGS)


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_golden_configurations_are_read_as_they_were_meant(name: str) -> None:
    config = read_model_config(GOLDEN / name)
    assert (config.rope, windows(config)) == GOLDEN_CONFIGS[name]
    is_qwen2 = name.startswith("qwen2-")
    assert (config.has_qkv_bias, config.has_out_bias) == (is_qwen2 or name == "qwen3-biases", name == "qwen3-biases")
    assert (config.has_qk_norm, config.has_mlp_bias) == (not is_qwen2, False)


def test_absent_fields_mean_what_transformers_says(read_config: Callable[..., ModelConfig]) -> None:
    shared: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 4,
        "num_heads": 32,
        "num_kv_heads": 32,
        "max_position_embeddings": 32768,
        "window_layers": (),
    }
    assert read_config(QWEN2) == ModelConfig(family="qwen2", head_dim=2, has_qkv_bias=True, **shared)
    assert read_config(QWEN3) == ModelConfig(family="qwen3", head_dim=128, has_qk_norm=True, **shared)


@pytest.mark.parametrize("base", [QWEN2, QWEN3])
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"sliding_window": 16, "max_window_layers": 0}, [None] * 4),
        ({"use_sliding_window": True, "max_window_layers": 3}, [None, None, None, 4096]),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, [16] * 4),
        ({"use_sliding_window": True, "sliding_window": 16}, [None] * 4),  # from layer 28 on
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, [None] * 4),
        ({"use_sliding_window": False, "layer_types": ["full_attention"] * 4}, [None] * 4),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 16,
                "max_window_layers": 3,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            [16, None, 16, None],
        ),
    ],
)
def test_windows_are_those_of_the_layers_that_the_file_means(
    read_config: Callable[..., ModelConfig], base: dict[str, Any], more: dict[str, Any], expected: list[int | None]
) -> None:
    assert windows(read_config(base | more)) == expected


REFUSED: list[Any] = [
    (
        {"layer_types": ["sliding_attention"] * 4},
        "sliding_window must be there, and in use, since layer 0 has a window",
    ),
    ({"layer_types": ["full_attention"] * 3}, "layer_types must be one of full_attention .* for each of 4 layers"),
    ({"layer_types": ["full_attention", "chunked_attention"] * 2}, "layer_types must be one of .*: use another model"),
    ({"layer_types": "full_attention"}, "layer_types must be one of"),
    ({"layer_types": [["full_attention"]] * 4}, "layer_types must be one of"),
    ({"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers must be a whole number from 0"),
    ({"use_sliding_window": 1}, "use_sliding_window must be true or false"),
    ({"hidden_act": "gelu"}, "hidden_act must be silu"),
    (
        {"dual_chunk_attention_config": {"chunk_size": 8}},
        "dual_chunk_attention_config must not be there: .*: remove it",
    ),
    ({"use_mrope": True}, "use_mrope must be false"),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}, "rope_scaling.type must be one of default, linear"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
]


@pytest.mark.parametrize("base", [QWEN2, QWEN3])
@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_what_is_not_implemented_is_refused_by_name(
    read_config: Callable[..., ModelConfig], base: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read_config(base | more)
