"""Tiny Falcons: both architectures, one norm a layer and two, attention and MLP side by side and one after the other."""

from cases.case import DYNAMIC_PROMPTS, Case


def shape(vocab, hidden, layers, heads, max_positions=160, **more):
    """Config arguments in one line."""
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": max_positions,
        **more,
    }


def grouped(vocab, hidden, layers, heads, kv_heads, max_positions=160, **more):
    """The architecture of 40B and 180B."""
    more |= {"num_kv_heads": kv_heads, "new_decoder_architecture": True}
    return shape(vocab, hidden, layers, heads, max_positions, **more)


CASES = (
    Case("falcon-7b", shape(61, 40, 2, 5), eos=11),
    Case("falcon-7b-old", shape(97, 36, 3, 3, bias=True, layer_norm_epsilon=1e-3), old_style_config=True),
    Case("falcon-heads", shape(97, 36, 2, 3, multi_query=False, bias=True, ffn_hidden_size=52)),
    Case(
        "falcon-sequential", shape(61, 48, 2, 4, parallel_attn=False, bias=True, tie_word_embeddings=False), eos=[3, 7]
    ),
    Case(
        "falcon-sequential-heads",
        shape(131, 32, 2, 4, parallel_attn=False, multi_query=False, activation="gelu_pytorch_tanh"),
        eos=None,
    ),
    Case("falcon-grouped", grouped(97, 48, 2, 6, 2, ffn_hidden_size=72)),
    Case(
        "falcon-grouped-one-norm",
        grouped(131, 64, 2, 8, 1, num_ln_in_parallel_attn=1, tie_word_embeddings=False, activation="silu"),
        rope={"rope_type": "default", "rope_theta": 500042.0},
    ),
    Case(
        "falcon-grouped-linear-old",
        grouped(61, 40, 2, 5, 5, bias=True),
        rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
        old_style_config=True,
    ),
    Case(
        "falcon-grouped-dynamic",
        grouped(97, 64, 2, 4, 2, max_positions=80),
        rope={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        prompts=DYNAMIC_PROMPTS,
    ),
    Case(
        "falcon-grouped-yarn",
        grouped(61, 96, 1, 6, 3, ffn_hidden_size=56),
        rope={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 5.0, "original_max_position_embeddings": 32},
    ),
    Case(
        "falcon-llama3-old",
        shape(131, 36, 2, 3),
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
