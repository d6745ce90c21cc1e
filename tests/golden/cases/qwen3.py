"""Tiny Qwen3s: normalized queries and keys, heads wider than hidden / heads, biases on all of attention or on none of it."""

from cases.case import DYNAMIC_PROMPTS, Case, shape

CASES = (
    Case("qwen3-plain", shape(97, 32, 56, 2, 4, 4, 8, rms_norm_eps=1e-6)),
    Case(
        "qwen3-gqa5-head24",
        shape(61, 40, 48, 2, 5, 1, 24, tie_word_embeddings=True),
        rope={"rope_type": "default", "rope_theta": 1000000.0},
        eos=[3, 60],
    ),
    Case("qwen3-biases", shape(131, 32, 48, 2, 6, 2, 12, attention_bias=True, rms_norm_eps=1e-3), eos=None),
    Case(
        "qwen3-upper-window-old",
        shape(97, 24, 56, 3, 3, 1, 16, use_sliding_window=True, sliding_window=13, max_window_layers=2),
        old_style_config=True,
    ),
    Case(
        "qwen3-listed-window",
        shape(
            61,
            32,
            48,
            3,
            4,
            2,
            8,
            use_sliding_window=True,
            sliding_window=27,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
        rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    ),
    Case(
        "qwen3-dynamic",
        shape(61, 32, 48, 2, 4, 1, 12, max_positions=80, tie_word_embeddings=True),
        rope={"rope_type": "dynamic", "rope_theta": 20000.0, "factor": 2.0},
        prompts=DYNAMIC_PROMPTS,
    ),
    Case(
        "qwen3-llama3",
        shape(97, 48, 40, 2, 6, 6, 8),
        rope={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    Case(
        "qwen3-yarn",
        shape(61, 32, 48, 1, 8, 2, 20),
        rope={
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 40,
            "attention_factor": 0.9,
        },
    ),
)
