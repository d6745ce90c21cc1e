"""config.json in the forms of transformers 4 and 5; what transformers takes absent fields to mean; clear refusals."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import ModelError, ModelNotFoundError
from sarathi_jax.models import FAMILIES
from sarathi_jax.models.config import ModelConfig, RopeConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "data"
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **SIZES}
SAME_NAMES = ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings")
OTHER_NAMES = {
    "norm_eps": "rms_norm_eps",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "is_head_tied": "tie_word_embeddings",
}
YARN: dict[str, Any] = {"kind": "yarn", "factor": 4.0, "original_max_position": 40}
MSCALE_FACTOR = (0.1 * math.log(4.0) + 1.0) / (0.05 * math.log(4.0) + 1.0)
GOLDEN_ROPES = {
    "llama-biases": RopeConfig(),
    "llama-dynamic": RopeConfig(kind="dynamic", factor=2.0, original_max_position=80),
    "llama-gqa3": RopeConfig(),
    "llama-gqa8-head12": RopeConfig(theta=500000.0),
    "llama-linear": RopeConfig(kind="linear", factor=4.0),
    "llama-linear-old": RopeConfig(kind="linear", theta=5000.0, factor=2.5),
    "llama-llama3": RopeConfig(kind="llama3", theta=500000.0, factor=8.0, original_max_position=32),
    "llama-tied": RopeConfig(),
    "llama-wide-head": RopeConfig(),
    "llama-yarn": RopeConfig(kind="yarn", factor=5.0, original_max_position=32),
    "llama-yarn-old": RopeConfig(**YARN, theta=1000.0, beta_fast=8.0, beta_slow=2.0, attention_factor=0.85),
    "mistral-dynamic": RopeConfig(kind="dynamic", theta=20000.0, factor=2.0, original_max_position=80),
    "mistral-gqa8-head24": RopeConfig(theta=1000000.0),
    "mistral-linear-old": RopeConfig(kind="linear", factor=3.0),
    "mistral-llama3-old": RopeConfig(
        kind="llama3", factor=4.0, original_max_position=64, low_freq_factor=2.0, high_freq_factor=6.0
    ),
    "mistral-no-window": RopeConfig(),
    "mistral-wide-window": RopeConfig(),
    "mistral-window": RopeConfig(),
    "mistral-window7-gqa3": RopeConfig(),
    "mistral-yarn": RopeConfig(**YARN, attention_factor=MSCALE_FACTOR),
    "mistral-yarn-untruncated": RopeConfig(**YARN, is_truncated=False),
}


def read(folder: Path, values: object, **more: Any) -> ModelConfig:
    """Write config.json (and other files by name) and read it."""
    (folder / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    for name, each in more.items():
        (folder / f"{name}.json").write_text(json.dumps(each))
    return read_model_config(folder)


def test_every_golden_configuration_of_these_families_has_its_rope_listed_here() -> None:
    names = {path.parent.name for path in GOLDEN.glob("*/config.json")}
    assert {name for name in names if name.startswith(("llama-", "mistral-"))} == set(GOLDEN_ROPES)


@pytest.mark.parametrize("name", sorted(GOLDEN_ROPES))
def test_golden_configurations_are_read_as_they_were_meant(name: str) -> None:
    written = json.loads((GOLDEN / name / "config.json").read_text())
    config = read_model_config(GOLDEN / name)
    for field, source in {**dict(zip(SAME_NAMES, SAME_NAMES, strict=True)), **OTHER_NAMES}.items():
        assert getattr(config, field) == written[source], field
    assert config.rope == GOLDEN_ROPES[name]
    assert config.sliding_window == written.get("sliding_window")
    assert config.family == name.split("-")[0]
    assert (config.has_qkv_bias, config.has_out_bias, config.has_mlp_bias) == (name == "llama-biases",) * 3
    eos = written["eos_token_id"]
    assert list(config.eos_token_ids) == (eos if isinstance(eos, list) else [] if eos is None else [eos])


def test_absent_fields_of_a_llama_mean_what_transformers_says(tmp_path: Path) -> None:
    without_length = {name: value for name, value in LLAMA.items() if name != "max_position_embeddings"}
    assert read(tmp_path, without_length) == ModelConfig(
        family="llama",
        vocab_size=32,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=8,
        num_kv_heads=8,
        head_dim=8,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def test_absent_fields_of_a_mistral_mean_what_transformers_says(tmp_path: Path) -> None:
    config = read(tmp_path, MISTRAL | {"num_attention_heads": 16, "max_position_embeddings": None})
    assert (config.num_kv_heads, config.head_dim, config.sliding_window) == (8, 4, 4096)
    assert (config.max_position_embeddings, config.is_head_tied) == (131072, False)


def test_null_is_not_the_same_as_absent(tmp_path: Path) -> None:
    nulls = dict.fromkeys(("sliding_window", "num_key_value_heads", "bos_token_id", "eos_token_id", "head_dim"))
    config = read(tmp_path, MISTRAL | {"num_attention_heads": 16} | nulls)
    assert (config.sliding_window, config.num_kv_heads, config.head_dim) == (None, 16, 4)
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())


def test_a_llama_has_no_window_whatever_its_file_says(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA | {"sliding_window": 16}).sliding_window is None


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        (2, {"eos_token_id": [3, 4, 3]}, (3, 4)),
        (2, {"eos_token_id": 5}, (5,)),
        ([6, 7], {"temperature": 0.6}, (6, 7)),
        (None, {"eos_token_id": None}, ()),
    ],
)
def test_the_generation_config_says_what_ends_an_output(
    tmp_path: Path, config_eos: object, generation: object, expected: tuple[int, ...]
) -> None:
    assert read(tmp_path, LLAMA | {"eos_token_id": config_eos}, generation_config=generation).eos_token_ids == expected


@pytest.mark.parametrize(
    ("more", "name", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "dtype", "bfloat16"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "dtype", "float16"),
        ({"pad_token_id": -1}, "pad_token_id", None),
        ({"pad_token_id": 0}, "pad_token_id", 0),
        ({"hidden_act": "swish", "pretraining_tp": 4, "quantization_config": None}, "family", "llama"),
        ({"architectures": None}, "family", "llama"),
        ({"rms_norm_eps": 1}, "norm_eps", 1.0),
        ({"attention_bias": True, "mlp_bias": True}, "has_mlp_bias", True),
    ],
)
def test_harmless_variety_is_read(tmp_path: Path, more: dict[str, Any], name: str, expected: object) -> None:
    assert getattr(read(tmp_path, LLAMA | more), name) == expected


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"rope_theta": 5000000}, RopeConfig(theta=5e6)),
        ({"rope_parameters": {"rope_theta": 7e5, "rope_type": "default"}, "rope_theta": 5e6}, RopeConfig(theta=7e5)),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 7e5}}, RopeConfig(theta=7e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig(kind="linear", factor=2.0)),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True}},
            RopeConfig(kind="yarn", factor=4.0, original_max_position=128),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": None}, "original_max_position_embeddings": 32},
            RopeConfig(kind="yarn", factor=4.0, original_max_position=32),
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 16}},
            RopeConfig(kind="dynamic", factor=3.0, original_max_position=128),
        ),
    ],
)
def test_rope_in_every_spelling(tmp_path: Path, more: dict[str, Any], expected: RopeConfig) -> None:
    assert read(tmp_path, LLAMA | more).rope == expected


SCALING = "rope_scaling"
SUPPORTED = ", ".join(family.ARCHITECTURE for family in FAMILIES.values())
REFUSED: list[Any] = [
    (
        {"architectures": ["GPT2LMHeadModel"]},
        rf"architectures must name one of {SUPPORTED}, got \['GPT2",
    ),
    ({"architectures": [{}]}, f"architectures must name one of {SUPPORTED}"),
    (
        {"architectures": None, "model_type": "gpt2"},
        "architectures must name one of .*, got nothing, and model_type='gpt2'",
    ),
    ({"vocab_size": None}, "vocab_size must be a whole number from 1 to 2147483647, got None: add it"),
    ({"hidden_size": "64"}, "hidden_size must be a whole number .*, got '64': correct it"),
    ({"hidden_size": 64.0}, "hidden_size must be a whole number .*, got 64.0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 to .*, got 0"),
    ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number .*, got True"),
    ({"intermediate_size": 10**400}, "intermediate_size must be a whole number"),
    ({"num_key_value_heads": 3}, "num_attention_heads=8 must be a multiple of num_key_value_heads=3"),
    ({"hidden_size": 63}, "without head_dim, hidden_size=63 must be a multiple of num_attention_heads=8"),
    ({"head_dim": 5}, "head_dim must be even, .* got 5"),
    ({"hidden_size": 56}, "head_dim must be even, .* got 7"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be a finite number > 0, got 0"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a finite number > 0, got nan"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a finite number > 0"),
    ({"rope_theta": 1.0}, "rope_theta must be a finite number > 1, got 1.0"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
    ({"eos_token_id": 32}, "eos_token_id must be a token id below vocab_size=32, .* got 32"),
    ({"eos_token_id": [2, "3"]}, r"eos_token_id must be a token id below .* got \[2, '3'\]"),
    ({"bos_token_id": -1}, "bos_token_id must be a token id below"),
    ({"torch_dtype": "float64"}, "torch_dtype must be one of float32, bfloat16, float16, got 'float64': convert"),
    ({"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu': use another model"),
    (
        {"quantization_config": {"bits": 4}},
        "quantization_config must not be there, .*: use weights that are not quantized",
    ),
    ({"layer_types": ["sliding_attention"] * 2}, "layer_types must all be full_attention, or not be there"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    ({SCALING: "linear"}, "rope_scaling must be an object or null, got 'linear'"),
    ({SCALING: {"rope_type": "longrope"}}, "rope_scaling.rope_type must be one of default, linear, .*, got 'longrope'"),
    ({SCALING: {"type": ["linear"]}}, "rope_scaling.type must be one of default, linear"),
    ({SCALING: {"type": "linear"}}, "rope_scaling.factor must be a finite number >= 1, got nothing: add it"),
    ({SCALING: {"type": "yarn"}}, "rope_scaling.factor must be a finite number >= 1, got nothing"),
    ({SCALING: {"type": "linear", "factor": 0.5}}, "rope_scaling.factor must be a finite number >= 1, got 0.5"),
    (
        {SCALING: {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
        "rope_scaling.alpha is no field of rope type 'dynamic'",
    ),
    ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention is no field of rope type 'default'"),
    (
        {SCALING: {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        "rope_scaling.high_freq_factor must be a finite number > 4, got 4.0",
    ),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_a_wrong_field_is_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read(tmp_path, LLAMA | more)


def test_a_mistral_with_biases_or_no_window_to_speak_of_is_refused(tmp_path: Path) -> None:
    for more in ({"attention_bias": True}, {"mlp_bias": True}):
        with pytest.raises(ModelError, match="_bias must be false in a mistral model, got True"):
            read(tmp_path, MISTRAL | more)
    with pytest.raises(ModelError, match="sliding_window must be a whole number from 1"):
        read(tmp_path, MISTRAL | {"sliding_window": 0})


def test_a_wrong_generation_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id must be a token id"):
        read(tmp_path, LLAMA, generation_config={"eos_token_id": 99})


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json must be there"):
        read_model_config(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json must be JSON in UTF-8"):
        read(tmp_path, "{")
    with pytest.raises(ModelError, match=r"config\.json must hold a JSON object, got list"):
        read(tmp_path, [])
