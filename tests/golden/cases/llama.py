"""Tiny Llamas."""

from cases.case import DYNAMIC_PROMPTS, Case, shape

CASES = (
    Case("llama-tied", shape(61, 24, 56, 1, 3, 3, 8, rms_norm_eps=1e-5, tie_word_embeddings=True), std=0.3),
    Case("llama-gqa3", shape(97, 48, 72, 2, 6, 2, 8, rms_norm_eps=1e-6), eos=[7, 11]),
    Case("llama-gqa8-head12", shape(131, 40, 88, 3, 8, 1, 12), rope={"rope_type": "default", "rope_theta": 500000.0}),
    Case("llama-wide-head", shape(97, 24, 40, 2, 3, 1, 32, rms_norm_eps=1e-3), old_style_config=True),
    Case("llama-biases", shape(61, 32, 48, 2, 4, 4, 8, attention_bias=True, mlp_bias=True), eos=None),
    Case(
        "llama-linear",
        shape(97, 32, 64, 2, 4, 2, 8),
        rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    ),
    Case(
        "llama-linear-old",
        shape(61, 40, 56, 2, 5, 1, 8),
        rope={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5},
        old_style_config=True,
    ),
    Case(
        "llama-dynamic",
        shape(97, 32, 64, 2, 4, 4, 16, max_positions=80),
        rope={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        prompts=DYNAMIC_PROMPTS,
    ),
    Case(
        "llama-llama3",
        shape(131, 48, 64, 2, 6, 2, 16, tie_word_embeddings=True),
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
        "llama-yarn",
        shape(97, 64, 48, 2, 8, 8, 16),
        rope={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 5.0, "original_max_position_embeddings": 32},
    ),
    Case(
        "llama-yarn-old",
        shape(61, 32, 56, 3, 4, 4, 20, tie_word_embeddings=True),
        rope={
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 40,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "attention_factor": 0.85,
        },
        old_style_config=True,
    ),
)
