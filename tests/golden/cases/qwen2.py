"""Tiny Qwen2s: biases on queries, keys and values alone; windows in upper layers, in those that are listed, or in none."""

from cases.case import DYNAMIC_PROMPTS, Case, shape

CASES = (
    Case("qwen2-plain", shape(97, 32, 56, 2, 4, 4, 8, rms_norm_eps=1e-6), eos=[7, 11]),
    Case(
        "qwen2-gqa3-head12",
        shape(61, 32, 48, 2, 6, 2, 12, tie_word_embeddings=True, max_window_layers=0),
        rope={"rope_type": "default", "rope_theta": 1000000.0},
        old_style_config=True,
        old_fields={"sliding_window": 20},  # and not in use
    ),
    Case(
        "qwen2-upper-window-old",
        shape(97, 24, 56, 3, 3, 1, 8, use_sliding_window=True, sliding_window=11, max_window_layers=1),
        old_style_config=True,
    ),
    Case(
        "qwen2-listed-window",
        shape(
            131,
            40,
            48,
            3,
            5,
            1,
            8,
            use_sliding_window=True,
            sliding_window=19,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        eos=None,
    ),
    Case(
        "qwen2-linear",
        shape(61, 32, 48, 2, 4, 2, 16, use_sliding_window=True, sliding_window=33, max_window_layers=0),
        rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    ),
    Case(
        "qwen2-dynamic",
        shape(97, 32, 48, 2, 4, 2, 8, max_positions=80, rms_norm_eps=1e-5),
        rope={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        prompts=DYNAMIC_PROMPTS,
    ),
    Case(
        "qwen2-llama3",
        shape(61, 32, 64, 2, 8, 1, 8),
        rope={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 48,
        },
    ),
    Case(
        "qwen2-yarn-old",
        shape(97, 48, 40, 1, 6, 2, 16, tie_word_embeddings=True),
        rope={"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 40},
        old_style_config=True,
    ),
)
