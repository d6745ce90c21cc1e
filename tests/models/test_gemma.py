"""Configurations of Gemma 2 and 3: what transformers takes absent fields to mean, windows and rotary embeddings by layer, soft caps, clear refusals; the text
model in a folder that has more; scaled embeddings."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import ModelError
from sarathi_jax.models import ModelConfig, create_model
from sarathi_jax.models.config import RopeConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "data"
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
}
# As google/gemma-3-4b-it spells it, with sizes of its own: what it leaves out is as transformers has it.
GEMMA3: dict[str, Any] = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **SIZES}
TEXT_CONFIG = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
IMAGES: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "text_config": TEXT_CONFIG,
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "siglip_vision_model"},
}
GEMMA2: dict[str, Any] = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **SIZES}
LLAMA3 = RopeConfig(kind="llama3", factor=4.0, original_max_position=48)
YARN = RopeConfig(kind="yarn", factor=4.0, original_max_position=40)
# (rope, windows by layer, soft caps of attention and of logits, query scalar)
GOLDEN_GEMMA2: dict[str, tuple[RopeConfig, list[int | None], tuple[float | None, float | None], float]] = {
    "gemma2-plain": (RopeConfig(), [16, None], (3.0, 4.0), 8.0),
    "gemma2-uncapped-gqa3": (RopeConfig(), [9, None, 9], (None, None), 10.0),
    "gemma2-biases-old": (RopeConfig(), [21, None], (3.0, None), 6.0),
    "gemma2-listed-window": (RopeConfig(), [None, 27, 27], (None, 3.0), 16.0),
    "gemma2-linear-old": (RopeConfig(kind="linear", factor=3.0), [7, None, 7], (4.0, 2.5), 12.0),
    "gemma2-dynamic": (
        RopeConfig(kind="dynamic", theta=2e4, factor=2.0, original_max_position=80),
        [48, None],
        (2.0, 6.0),
        9.0,
    ),
    "gemma2-llama3": (LLAMA3, [4096, None], (2.0, 7.0), 3.0),
    "gemma2-yarn-global": (YARN, [None] * 3, (5.0, 3.5), 20.0),
}
GLOBAL = RopeConfig(theta=1e6)
# (rope, rope of layers with a window, windows by layer, soft cap of logits, query scalar)
GOLDEN_GEMMA3: dict[str, tuple[RopeConfig, RopeConfig | None, list[int | None], float | None, float]] = {
    "gemma3_text-plain": (GLOBAL, RopeConfig(), [16, 16, None], None, 8.0),
    "gemma3_text-gqa3-head24": (GLOBAL, RopeConfig(theta=500.0), [9, None, 9], None, 10.0),
    "gemma3_text-linear-old": (
        RopeConfig(kind="linear", theta=1e6, factor=8.0),
        RopeConfig(theta=2000.0),
        [11, None, 11],
        None,
        7.0,
    ),
    "gemma3_text-biases": (GLOBAL, RopeConfig(), [21, None], 4.0, 6.0),
    "gemma3_text-llama3-listed": (
        replace(LLAMA3, theta=1e6),
        RopeConfig(kind="linear", factor=2.0),
        [None, 27, 27],
        None,
        16.0,
    ),
    "gemma3_text-dynamic": (
        RopeConfig(kind="dynamic", theta=1e6, factor=2.0, original_max_position=80),
        RopeConfig(),
        [48, None],
        None,
        9.0,
    ),
    "gemma3_text-yarn-global": (replace(YARN, theta=1e6), None, [None, None], None, 20.0),
    "gemma3_text-local": (GLOBAL, RopeConfig(theta=300.0), [33, 33], None, 5.0),
    "gemma3-two-ropes": (GLOBAL, RopeConfig(theta=700.0), [13, None], None, 8.0),
    "gemma3-linear-old": (RopeConfig(kind="linear", theta=1e6, factor=8.0), RopeConfig(), [8, None, 8], None, 9.0),
}


def windows(config: ModelConfig) -> list[int | None]:
    return [config.window(index) for index in range(config.num_layers)]


def test_every_golden_configuration_is_listed_here() -> None:
    names = {path.parent.name for path in GOLDEN.glob("*/config.json")}
    assert {name for name in names if name.startswith("gemma")} == GOLDEN_GEMMA2.keys() | GOLDEN_GEMMA3.keys()


@pytest.mark.parametrize("name", GOLDEN_GEMMA2)
def test_golden_gemma2s_are_read_as_they_were_meant(name: str) -> None:
    config = read_model_config(GOLDEN / name)
    caps = config.attention_soft_cap, config.logit_soft_cap
    assert (config.rope, windows(config), caps, config.query_scalar) == GOLDEN_GEMMA2[name]
    assert (config.has_qkv_bias, config.has_out_bias) == (name == "gemma2-biases-old",) * 2


def test_absent_fields_of_a_gemma2_mean_what_transformers_says(read_config: Callable[..., ModelConfig]) -> None:
    assert read_config(GEMMA2) == ModelConfig(
        family="gemma2",
        vocab_size=40,
        hidden_size=48,
        intermediate_size=96,
        num_layers=4,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        max_position_embeddings=8192,
        norm="rms_plus_one",
        activation="gelu_tanh",
        is_head_tied=True,
        sliding_window=4096,
        window_layers=(0, 2),
        query_scalar=256.0,
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
        embedding_scale=math.sqrt(48),
        bos_token_id=2,
        eos_token_ids=(1,),
        pad_token_id=0,
    )


def test_a_gemma2_may_have_no_caps_and_windows_where_it_says(read_config: Callable[..., ModelConfig]) -> None:
    more = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 16, "hidden_act": "relu"}
    config = read_config(GEMMA2 | more | {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]})
    assert (config.attention_soft_cap, config.logit_soft_cap) == (None, None)
    assert (windows(config), config.activation) == ([None, None, None, 16], "gelu_tanh")


REFUSED: list[Any] = [
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention must be false"),
    ({"hidden_activation": "relu"}, "hidden_activation must be gelu_tanh, got 'relu'"),
    ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a finite number > 0"),
    (
        {"layer_types": ["full_attention"]},
        "layer_types must be one of full_attention or sliding_attention for each of 4",
    ),
    ({"sliding_window": None}, "sliding_window must be there, and in use, since layer 0 has a window, got None"),
    ({"sliding_window": 0}, "sliding_window must be a whole number from 1"),
]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *REFUSED,
        ({"attn_logit_softcapping": 0}, "attn_logit_softcapping must be a finite number > 0"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping must be a finite number > 0"),
    ],
)
def test_what_a_gemma2_may_not_ask_for_is_refused_by_name(
    read_config: Callable[..., ModelConfig], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read_config(GEMMA2 | more)


@pytest.mark.parametrize("name", GOLDEN_GEMMA3)
def test_golden_gemma3s_are_read_as_they_were_meant(name: str) -> None:
    config = read_model_config(GOLDEN / name)
    got = config.rope, config.local_rope, windows(config), config.logit_soft_cap, config.query_scalar
    assert got == GOLDEN_GEMMA3[name]
    assert (config.has_qkv_bias, config.has_out_bias) == (name == "gemma3_text-biases",) * 2
    assert (config.has_qk_norm, config.attention_soft_cap) == (True, None)


def test_absent_fields_of_a_gemma3_mean_what_transformers_says(read_config: Callable[..., ModelConfig]) -> None:
    expected = replace(
        read_config(GEMMA2),
        family="gemma3_text",
        max_position_embeddings=131072,
        rope=GLOBAL,
        local_rope=RopeConfig(),
        has_qk_norm=True,
        attention_soft_cap=None,
        logit_soft_cap=None,
    )
    config = read_config(GEMMA3 | {"num_hidden_layers": 7})
    assert config == replace(expected, num_layers=7, window_layers=(0, 1, 2, 3, 4, 6))
    assert config.layer_rope(5) == GLOBAL and config.layer_rope(6) == RopeConfig()


def test_a_gemma3_may_leave_out_its_sizes(read_config: Callable[..., ModelConfig]) -> None:
    config = read_config({"architectures": ["Gemma3ForCausalLM"]})
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (262208, 2304, 9216)
    assert (config.num_layers, config.num_heads) == (26, 8)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"rope_theta": 5e5, "rope_local_base_freq": 1234.0}, (RopeConfig(theta=5e5), RopeConfig(theta=1234.0))),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, (RopeConfig(kind="linear", theta=1e6, factor=8.0), RopeConfig())),
        ({"rope_parameters": {"full_attention": {"rope_theta": 7e5}}}, (RopeConfig(theta=7e5), RopeConfig())),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, (GLOBAL, RopeConfig(kind="linear", factor=2.0))),
        ({"rope_parameters": {"full_attention": None}, "rope_theta": 3e5}, (RopeConfig(theta=3e5), RopeConfig())),
    ],
)  # fmt: skip
def test_two_rotary_embeddings_in_every_spelling(
    read_config: Callable[..., ModelConfig], more: dict[str, Any], expected: tuple[RopeConfig, RopeConfig]
) -> None:
    config = read_config(GEMMA3 | {"num_hidden_layers": 6} | more)
    assert (config.rope, config.local_rope) == expected


def test_a_window_comes_in_the_pattern_that_the_file_gives(read_config: Callable[..., ModelConfig]) -> None:
    assert windows(read_config(GEMMA3 | {"sliding_window": 9, "sliding_window_pattern": 2})) == [9, None, 9, None]
    all_global = read_config(GEMMA3 | {"sliding_window_pattern": 1})
    assert (windows(all_global), all_global.local_rope) == ([None] * 4, None)
    all_local = read_config(GEMMA3 | {"sliding_window": 9})
    assert windows(all_local) == [9] * 4 and all_local.layer_rope(3) == RopeConfig()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *REFUSED,
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be null in a gemma3_text model, got 50.0"),
        ({"rope_parameters": {"rope_theta": 7e5}}, "rope_parameters.rope_theta must be in full_attention or sliding_attention"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "rope_parameters.full_attention.rope_type must be one of"),
        ({"rope_parameters": {"sliding_attention": {"alpha": 1}}}, "rope_parameters.sliding_attention.alpha is no field of"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 7e5}}, "rope_scaling": {"rope_type": "linear"}}, "rope_scaling must not be there beside rope_parameters"),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling.type must be spelled rope_type"),
        ({"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5}}}, "rope_parameters.sliding_attention.partial_rotary_factor must be 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ({"rope_local_base_freq": 1}, "rope_local_base_freq must be a finite number > 1"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern must be a whole number from 1"),
    ],
)  # fmt: skip
def test_what_a_gemma3_may_not_ask_for_is_refused_by_name(
    read_config: Callable[..., ModelConfig], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read_config(GEMMA3 | more)


def test_the_text_model_of_one_that_sees_images_is_read(read_config: Callable[..., ModelConfig]) -> None:
    text = read_config({"architectures": ["Gemma3ForCausalLM"], **TEXT_CONFIG})
    assert (text.num_layers, text.num_heads, text.head_dim, text.vocab_size) == (34, 8, 256, 262208)
    assert read_config(IMAGES) == replace(text, family="gemma3", eos_token_ids=(1, 106), dtype="bfloat16")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text_config": None}, "text_config must be an object that describes the text model, got None"),
        ({"text_config": {**TEXT_CONFIG, "hidden_size": 0}}, "text_config.hidden_size must be a whole number from 1"),
        ({"text_config": {**TEXT_CONFIG, "final_logit_softcapping": 30.0}}, "text_config.final_logit_softcapping must be null"),
        ({"text_config": {**TEXT_CONFIG, "tie_word_embeddings": False}}, "text_config.tie_word_embeddings must be true"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be true in a gemma3 model"),
        ({"eos_token_id": 262208}, "eos_token_id must be a token id below vocab_size=262208"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must not be there"),
        ({"torch_dtype": "float8"}, "torch_dtype must be one of float32"),
    ],
)  # fmt: skip
def test_what_such_a_folder_may_not_ask_for_is_refused_by_name(
    read_config: Callable[..., ModelConfig], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read_config(IMAGES | more)


def test_embeddings_are_scaled_by_a_root_in_their_own_dtype(read_config: Callable[..., ModelConfig]) -> None:
    """sqrt(48) is 6.928, and 6.9375 in bfloat16: Gemma's weights were trained with the latter."""
    config = replace(read_config(GEMMA2), num_layers=1)
    model = create_model(config, rngs=nnx.Rngs(0), dtype=jnp.dtype("bfloat16"))
    row = np.asarray(model.embedding.embedding[...][7], np.float32)
    expected = (row * np.float32(6.9375)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(model.embed(jnp.array([7])))[0], expected)
