"""Tiny Mistrals."""

from cases.case import DYNAMIC_PROMPTS, Case, shape

CASES = (
    Case("mistral-window", shape(97, 32, 72, 2, 4, 4, 8, sliding_window=16, rms_norm_eps=1e-5)),
    Case("mistral-window7-gqa3", shape(61, 24, 56, 3, 3, 1, 8, sliding_window=7, rms_norm_eps=1e-6), eos=[3, 60]),
    Case(
        "mistral-gqa8-head24",
        shape(131, 64, 40, 1, 8, 1, 24, sliding_window=33, tie_word_embeddings=True),
        rope={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    Case("mistral-no-window", shape(97, 40, 64, 2, 4, 2, 16, sliding_window=None), old_style_config=True),
    Case("mistral-wide-window", shape(61, 48, 40, 2, 6, 2, 12, sliding_window=4096, rms_norm_eps=1e-4), eos=None),
    Case(
        "mistral-linear-old",
        shape(97, 32, 56, 2, 4, 1, 8, sliding_window=20),
        rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        old_style_config=True,
    ),
    Case(
        "mistral-dynamic",
        shape(61, 32, 48, 2, 4, 2, 12, sliding_window=24, max_positions=80),
        rope={"rope_type": "dynamic", "rope_theta": 20000.0, "factor": 2.0},
        prompts=DYNAMIC_PROMPTS,
    ),
    Case(
        "mistral-llama3-old",
        shape(131, 24, 64, 2, 3, 3, 16, sliding_window=None, tie_word_embeddings=True),
        rope={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 6.0,
            "original_max_position_embeddings": 64,
        },
        old_style_config=True,
        std=0.3,
    ),
    Case(
        "mistral-yarn",
        shape(97, 40, 48, 2, 8, 1, 16, sliding_window=48),
        rope={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 40,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
        },
    ),
    Case(
        "mistral-yarn-untruncated",
        shape(61, 32, 64, 2, 4, 4, 24),
        rope={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 40,
            "truncate": False,
        },
    ),
)
