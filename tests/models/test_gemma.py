"""Configurations of Gemma 2: what transformers takes absent fields to mean, windows by layer, soft caps, clear refusals; and its scaled embeddings."""

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


def windows(config: ModelConfig) -> list[int | None]:
    return [config.window(index) for index in range(config.num_layers)]


def test_every_golden_configuration_is_listed_here() -> None:
    names = {path.parent.name for path in GOLDEN.glob("*/config.json")}
    assert {name for name in names if name.startswith("gemma2-")} == set(GOLDEN_GEMMA2)


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


def test_embeddings_are_scaled_by_a_root_in_their_own_dtype(read_config: Callable[..., ModelConfig]) -> None:
    """sqrt(48) is 6.928, and 6.9375 in bfloat16: Gemma's weights were trained with the latter."""
    config = replace(read_config(GEMMA2), num_layers=1)
    model = create_model(config, rngs=nnx.Rngs(0), dtype=jnp.dtype("bfloat16"))
    row = np.asarray(model.embedding.embedding[...][7], np.float32)
    expected = (row * np.float32(6.9375)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(model.embed(jnp.array([7])))[0], expected)
