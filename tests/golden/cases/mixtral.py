"""Tiny Mixtrals: 3 to 8 experts, of which each token has 1 to 3."""

from cases.case import DYNAMIC_PROMPTS, Case, shape


def experts(num, each, *sizes, **more):
    """Config arguments in one line."""
    return shape(*sizes, num_local_experts=num, num_experts_per_tok=each, **more)


CASES = (
    Case("mixtral-8x2", experts(8, 2, 97, 32, 24, 2, 4, 2, 8, rms_norm_eps=1e-5)),
    Case("mixtral-3x1-tied", experts(3, 1, 61, 24, 40, 2, 3, 3, 8, tie_word_embeddings=True), eos=[7, 11], std=0.3),
    Case(
        "mixtral-5x3-window-old",
        experts(5, 3, 131, 40, 20, 3, 8, 1, 12, sliding_window=20),
        rope={"rope_type": "default", "rope_theta": 1000000.0},
        old_style_config=True,
    ),
    # Of three experts PyTorch's CPU takes the first of equals, as its GPU always does.
    Case("mixtral-3x2-ties", experts(3, 2, 61, 32, 36, 2, 4, 2, 8), tied_experts=(0, 2)),
    Case(
        "mixtral-6x2-linear",
        experts(6, 2, 61, 32, 36, 2, 4, 4, 8),
        rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        eos=None,
    ),
    Case(
        "mixtral-7x2-dynamic",
        experts(7, 2, 97, 48, 24, 2, 6, 2, 16, max_positions=80),
        rope={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        prompts=DYNAMIC_PROMPTS,
    ),
    Case(
        "mixtral-4x4-llama3-old",
        experts(4, 4, 61, 40, 28, 2, 5, 1, 8),
        rope={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 6.0,
            "original_max_position_embeddings": 64,
        },
        old_style_config=True,
    ),
    Case(
        "mixtral-8x3-yarn",
        experts(8, 3, 97, 32, 20, 2, 4, 1, 16),
        rope={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 40},
    ),
)
