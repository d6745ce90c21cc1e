"""What a tiny model of the golden files is: a configuration with its odd values, prompts, and how its config.json is spelled."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One tiny model.

    name: its family, which is transformers' `model_type`, then what is odd about it.
    config: arguments of transformers' configuration class.
    std: of the random weights.
    centers: what norms of these names are around, if it is not what they start at.
    prompts: (length, also 64 greedy tokens?).
    old_style_config: config.json as transformers 4 wrote it, with `old_fields` in it too.
    rope: `rope_parameters`.
    vision: arguments of what sees images, where the text model is a part of such a model.
    tied_experts: those that the router gives exactly the same, whatever the token: a logit of 0.
    """

    name: str
    config: dict
    std: float = 0.2
    centers: dict = field(default_factory=dict)
    prompts: tuple[tuple[int, bool], ...] = ((5, True), (70, True))
    old_style_config: bool = False
    old_fields: dict = field(default_factory=dict)
    eos: object = 2
    rope: dict = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    vision: dict | None = None
    tied_experts: tuple[int, ...] = ()

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
