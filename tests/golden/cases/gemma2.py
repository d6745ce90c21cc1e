"""Tiny Gemma 2s: soft caps low enough to bend scores and logits, query scalars that are not the head width, windows in every other layer or as listed."""

from cases.case import DYNAMIC_PROMPTS, Case, shape

# So large that a tied head does not just repeat the token whose scaled embedding is in the sum too.
LOUD = {"post_attention_layernorm": 1.8, "post_feedforward_layernorm": 1.8}


def gemma2(*sizes, caps, query_scalar, **more):
    """Config arguments in one line. caps: of attention and of logits."""
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    return shape(*sizes, query_pre_attn_scalar=query_scalar, **dict(zip(names, caps, strict=True)), **more)


CASES = (
    Case(
        "gemma2-plain",
        gemma2(97, 32, 56, 2, 4, 4, 8, caps=(3.0, 4.0), query_scalar=8, sliding_window=16),
        centers=LOUD,
    ),
    Case(
        "gemma2-uncapped-gqa3",
        gemma2(61, 36, 48, 3, 6, 2, 24, caps=(None, None), query_scalar=10, sliding_window=9),
        eos=[3, 60],
        centers=LOUD,
    ),
    Case(
        "gemma2-biases-old",
        gemma2(
            *(131, 32, 40, 2, 4, 2, 12),
            caps=(3.0, None),
            query_scalar=6,
            sliding_window=21,
            attention_bias=True,
            tie_word_embeddings=False,
            rms_norm_eps=1e-4,
        ),
        old_style_config=True,
        old_fields={"hidden_act": "gelu", "cache_implementation": "hybrid"},  # which mean nothing
        eos=None,
    ),
    Case(
        "gemma2-listed-window",
        gemma2(
            *(97, 24, 56, 3, 3, 1, 16),
            caps=(None, 3.0),
            query_scalar=16,
            sliding_window=27,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
        centers=LOUD,
    ),
    Case(
        "gemma2-linear-old",
        gemma2(61, 32, 48, 3, 4, 1, 8, caps=(4.0, 2.5), query_scalar=12, sliding_window=7),
        rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        old_style_config=True,
        centers=LOUD,
    ),
    Case(
        "gemma2-dynamic",
        gemma2(61, 32, 48, 2, 4, 2, 8, 80, caps=(2.0, 6.0), query_scalar=9, sliding_window=48),
        rope={"rope_type": "dynamic", "rope_theta": 20000.0, "factor": 2.0},
        prompts=DYNAMIC_PROMPTS,
        centers=LOUD,
    ),
    Case(
        "gemma2-llama3",
        gemma2(
            *(97, 32, 40, 2, 8, 1, 12), caps=(2.0, 7.0), query_scalar=3, sliding_window=4096, tie_word_embeddings=False
        ),
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
        "gemma2-yarn-global",
        gemma2(61, 48, 32, 3, 6, 6, 16, caps=(5.0, 3.5), query_scalar=20, layer_types=["full_attention"] * 3),
        rope={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 40},
        centers=LOUD,
    ),
)
