"""Tiny Qwen3-MoEs: 3 to 16 experts, shares that sum to one and that don't, plain layers between."""

from cases.case import DYNAMIC_PROMPTS, Case, shape


def experts(num, each, size, *sizes, **more):
    """Config arguments in one line."""
    more |= {"num_local_experts": num, "num_experts_per_tok": each, "moe_intermediate_size": size}
    return shape(*sizes, **more)


CASES = (
    Case("qwen3_moe-16x3", experts(16, 3, 12, 97, 32, 40, 2, 4, 2, 8, norm_topk_prob=True)),
    Case("qwen3_moe-3x1-old", experts(3, 1, 20, 61, 24, 40, 2, 3, 1, 8), old_style_config=True, std=0.3),
    Case(
        "qwen3_moe-6x2-step2",
        experts(6, 2, 16, 131, 40, 36, 4, 8, 1, 12, decoder_sparse_step=2, tie_word_embeddings=True),
        eos=[3, 60],
    ),
    Case(
        "qwen3_moe-5x3-first-plain",
        experts(5, 3, 12, 61, 32, 28, 3, 4, 4, 8, mlp_only_layers=[0], attention_bias=True, norm_topk_prob=True),
        eos=None,
    ),
    Case("qwen3_moe-3x1-ties", experts(3, 1, 24, 61, 32, 40, 3, 4, 2, 8), tied_experts=(1, 2)),
    Case(
        "qwen3_moe-10x2-window",
        experts(10, 2, 16, 97, 48, 40, 2, 6, 2, 12, use_sliding_window=True, sliding_window=20),
        rope={"rope_type": "linear", "rope_theta": 1000000.0, "factor": 2.0},
    ),
    Case(
        "qwen3_moe-7x2-dynamic",
        experts(7, 2, 24, 97, 32, 40, 2, 4, 2, 16, max_positions=80, norm_topk_prob=True),
        rope={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        prompts=DYNAMIC_PROMPTS,
    ),
    Case(
        "qwen3_moe-12x8-yarn",
        experts(12, 8, 8, 61, 40, 32, 2, 5, 1, 16, norm_topk_prob=True),
        rope={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 5.0, "original_max_position_embeddings": 32},
    ),
    Case(
        "qwen3_moe-4x2-llama3-old",
        experts(4, 2, 20, 131, 24, 32, 2, 3, 3, 16),
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
)
