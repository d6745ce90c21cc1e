"""Tiny Phi-3s and Phi-4s: heads rotated in part, LongRoPE within and past the trained length, in all its spellings."""

from cases.case import Case, shape


def rope(rotated=1.0, **more):
    """`rope_parameters`."""
    return {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotated, **more}


def longrope(pairs, trained, rotated=1.0, **more):
    """LongRoPE for so many rotated pairs: factors that grow with the wavelength, as those that are found by search do."""
    short = [1.0 + 0.05 * pair for pair in range(pairs)]
    long = [1.0 + 0.75 * pair * pair for pair in range(pairs)]
    factors = {"short_factor": short, "long_factor": long, "original_max_position_embeddings": trained}
    return rope(rotated, **{"rope_type": "longrope", **factors, **more})


def phi3(vocab, hidden, mlp, layers, heads, kv_heads, head_dim=None, **more):
    """Config arguments in one line; head_dim None: a head has its share of the hidden size."""
    values = shape(vocab, hidden, mlp, layers, heads, kv_heads, head_dim, bos_token_id=1, pad_token_id=0, **more)
    return {name: value for name, value in values.items() if value is not None}


# A short one within 16 tokens, and two that are past them from the start.
PAST_16_PROMPTS = ((5, False), (20, True), (70, True))

CASES = (
    Case("phi3-plain", phi3(97, 32, 56, 2, 4, 4), rope=rope(rope_theta=250000.0)),
    Case(
        "phi3-window-old", phi3(61, 48, 40, 2, 6, 2, sliding_window=13), rope=rope(), old_style_config=True, eos=[7, 11]
    ),
    Case(
        "phi3-partial-gqa3",
        phi3(131, 48, 40, 2, 3, 1, tie_word_embeddings=True, sliding_window=4096, rms_norm_eps=1e-3),
        rope=rope(0.75),
        eos=None,
    ),
    Case("phi3-partial-head-dim", phi3(61, 32, 48, 2, 4, 1, head_dim=20), rope=rope(0.4, rope_theta=2000.0)),
    Case(
        "phi3-longrope-within",
        phi3(97, 40, 48, 2, 5, 5, original_max_position_embeddings=140),
        rope=longrope(4, 140),
    ),
    Case(
        "phi3-longrope-past",
        phi3(97, 48, 40, 2, 4, 2, original_max_position_embeddings=16, sliding_window=31),
        rope=longrope(6, 16),
        prompts=PAST_16_PROMPTS,
    ),
    Case(
        "phi3-longrope-partial-old",
        phi3(61, 64, 40, 2, 4, 1, original_max_position_embeddings=16, tie_word_embeddings=True),
        rope=longrope(6, 16, 0.75),
        prompts=PAST_16_PROMPTS,
        old_style_config=True,
    ),
    Case(
        "phi3-longrope-attention-factor",
        phi3(61, 32, 48, 2, 8, 1, original_max_position_embeddings=16),
        rope=longrope(2, 16, attention_factor=1.3),
        prompts=PAST_16_PROMPTS,
    ),
    Case(
        "phi3-longrope-factor",
        phi3(97, 32, 48, 1, 4, 2, original_max_position_embeddings=140),
        rope=longrope(4, 140, factor=3.0),
    ),
)
