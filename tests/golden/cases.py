"""The tiny models of the golden files: at least eight a family, each with its odd values.

Between them: GQA ratios 1, 2, 3, 4, 5 and 8; a head_dim that is not hidden / heads; tied heads; biases; every RoPE scaling in both families, in the
form of transformers 5 and of transformers 4; windows of 7 to 48 tokens before prompts of 70, no window, and one wider than the context; vocabularies
that are no multiple of 8; one, several and no end-of-sequence ids.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One tiny model: its family is the first word of its name; `prompts` are (length, also 64 greedy tokens?)."""

    name: str
    config: dict
    std: float = 0.2
    prompts: tuple[tuple[int, bool], ...] = ((5, True), (70, True))
    old_style_config: bool = False
    eos: object = 2
    rope: dict = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})

    @property
    def family(self) -> str:
        return self.name.split("-")[0]


def shape(vocab, hidden, mlp, layers, heads, kv_heads, head_dim, max_positions=160, **more):
    """Config arguments in one line."""
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": max_positions,
        **more,
    }


# With 80 positions: two greedy runs that end within them, one prompt within them, one twice as long.
DYNAMIC_PROMPTS = ((5, True), (16, True), (70, False), (160, False))


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
