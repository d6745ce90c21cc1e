"""Tiny Gemma 3s: two rotary embeddings each; and the same in folders of models that see images too."""

from cases.case import DYNAMIC_PROMPTS, Case, shape
from cases.gemma2 import LOUD


def ropes(full=None, local=None):
    """`rope_parameters` by kind of layer; None: as published."""
    return {
        "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"} | (full or {}),
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"} | (local or {}),
    }


VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}


CASES = (
    Case(
        "gemma3_text-plain",
        shape(97, 32, 56, 3, 4, 4, 8, query_pre_attn_scalar=8, sliding_window=16, sliding_window_pattern=3),
        rope=ropes(),
        centers=LOUD,
    ),
    Case(
        "gemma3_text-gqa3-head24",
        shape(61, 36, 48, 3, 6, 2, 24, query_pre_attn_scalar=10, sliding_window=9, sliding_window_pattern=2),
        rope=ropes(local={"rope_theta": 500.0}),
        centers=LOUD,
        eos=[3, 60],
    ),
    Case(
        "gemma3_text-linear-old",
        shape(97, 32, 40, 3, 4, 1, 12, query_pre_attn_scalar=7, sliding_window=11, sliding_window_pattern=2),
        rope=ropes(full={"rope_type": "linear", "factor": 8.0}, local={"rope_theta": 2000.0}),
        old_style_config=True,
        old_fields={"rope_local_base_freq": 2000.0, "sliding_window_pattern": 2},
        centers=LOUD,
    ),
    Case(
        "gemma3_text-biases",
        shape(
            *(131, 32, 40, 2, 4, 2, 12),
            query_pre_attn_scalar=6,
            sliding_window=21,
            sliding_window_pattern=2,
            attention_bias=True,
            final_logit_softcapping=4.0,
            tie_word_embeddings=False,
            rms_norm_eps=1e-4,
        ),
        rope=ropes(),
        eos=None,
    ),
    Case(
        "gemma3_text-llama3-listed",
        shape(
            *(97, 24, 56, 3, 3, 1, 16),
            query_pre_attn_scalar=16,
            sliding_window=27,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
        rope=ropes(full=LLAMA3, local={"rope_type": "linear", "factor": 2.0}),
        centers=LOUD,
    ),
    Case(
        "gemma3_text-dynamic",
        shape(61, 32, 48, 2, 4, 2, 8, 80, query_pre_attn_scalar=9, sliding_window=48, sliding_window_pattern=2),
        rope=ropes(full={"rope_type": "dynamic", "factor": 2.0}),
        prompts=DYNAMIC_PROMPTS,
        centers=LOUD,
    ),
    Case(
        "gemma3_text-yarn-global",
        shape(61, 48, 32, 2, 6, 6, 16, query_pre_attn_scalar=20, layer_types=["full_attention"] * 2),
        rope=ropes(full=YARN),
        centers=LOUD,
    ),
    Case(
        "gemma3_text-local",
        shape(
            97, 32, 40, 2, 8, 1, 8, query_pre_attn_scalar=5, sliding_window=33, layer_types=["sliding_attention"] * 2
        ),
        rope=ropes(local={"rope_theta": 300.0}),
        centers=LOUD,
    ),
    Case(
        "gemma3-two-ropes",
        shape(61, 32, 40, 2, 4, 2, 8, query_pre_attn_scalar=8, sliding_window=13, sliding_window_pattern=2),
        rope=ropes(local={"rope_theta": 700.0}),
        vision=VISION,
        eos=[1, 5],
        centers=LOUD,
    ),
    Case(
        "gemma3-linear-old",
        shape(97, 24, 40, 3, 3, 1, 12, query_pre_attn_scalar=9, sliding_window=8, sliding_window_pattern=2),
        rope=ropes(full={"rope_type": "linear", "factor": 8.0}),
        old_style_config=True,
        old_fields={"rope_local_base_freq": 10000.0, "sliding_window_pattern": 2},
        vision=VISION,
        centers=LOUD,
    ),
)
