"""What a model is, whatever file it came from: the numbers that its modules, its KV cache and its memory plan are built from.

Reading `config.json` is `sarathi_jax.checkpoints.model_config`'s; this module knows nothing of files.
"""

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
NormKind = Literal["rms", "rms_plus_one", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
BlockKind = Literal["sequential", "parallel", "parallel_one_norm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding and how it is stretched past the trained length.

    theta: base of the geometric series of wavelengths.
    factor: how many times longer than `original_max_position` the context is to be (unused by `default` and `longrope`).
    original_max_position: length the model was trained at, in tokens.
    low_freq_factor, high_freq_factor: `llama3` only.
    beta_fast, beta_slow, is_truncated: `yarn` only.
    attention_factor: what cos and sin are multiplied by, `yarn` and `longrope` only; None is 0.1 ln(factor) + 1 of `yarn`.
    short_factors, long_factors: `longrope` only: what the wavelength of each rotated pair is multiplied by.
    """

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """Layers whose MLP is a mixture of experts, of which each token goes through a few (Shazeer et al. 2017).

    expert_size: width F of one expert.
    is_normalized: whether the weights of a token's experts are made to sum to one.
    dense_layers: layers that have a plain MLP all the same.
    """

    num_experts: int
    num_experts_per_token: int
    expert_size: int
    is_normalized: bool = True
    dense_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and constants of a decoder-only model. Hashable: compiled programs are keyed by it.

    family: the name of the module in `sarathi_jax.models` that builds it.
    rope: of all layers, but where `local_rope` is given, those with a window.
    rotary_dim: how much of a head is rotated; None: all of it.
    norm: `rms_plus_one` multiplies by 1 + scale; `layer` has a mean and a bias too.
    is_mlp_gated: three weights, up(x) times activation(gate(x)); else two, activation(up(x)).
    block: `parallel` layers give attention and MLP the same x, each through a norm of its own, or both through one.
    has_qk_norm: queries and keys are normalized, head by head, before they are rotated.
    sliding_window: tokens a query sees, itself included; None: all before it.
    window_layers: layers that have the window; None: all of them.
    query_scalar: what queries are scaled by is one over its square root; None: head_dim.
    attention_soft_cap, logit_soft_cap: c tanh(x / c) of scores, and of logits; None: as they are.
    embedding_scale: what embeddings are multiplied by, rounded to the activations' dtype first.
    eos_token_ids: any of these ends an output.
    dtype: of the checkpoint's weights, as numpy spells it ("float32", "bfloat16", "float16").
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float = 1e-6
    norm: NormKind = "rms"
    activation: Activation = "silu"
    is_mlp_gated: bool = True
    block: BlockKind = "sequential"
    rope: RopeConfig = RopeConfig()
    local_rope: RopeConfig | None = None
    rotary_dim: int | None = None
    is_head_tied: bool = False
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    sliding_window: int | None = None
    window_layers: tuple[int, ...] | None = None
    query_scalar: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embedding_scale: float | None = None
    moe: MoEConfig | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtype: str = "float32"

    @property
    def num_queries_per_kv(self) -> int:
        """Query heads that read one KV head (GQA group)."""
        return self.num_heads // self.num_kv_heads

    @property
    def attention_scale(self) -> float:
        return (self.head_dim if self.query_scalar is None else self.query_scalar) ** -0.5

    @property
    def mlp_width(self) -> int:
        """Inner activations of a token in the widest layer: F, or of all experts together."""
        experts = 0 if self.moe is None else self.moe.num_experts * self.moe.expert_size
        return max(self.intermediate_size, experts)

    def window(self, layer_index: int) -> int | None:
        """Tokens that a query of this layer sees, itself included; None: all before it."""
        return self.sliding_window if self._has_window(layer_index) else None

    def layer_rope(self, layer_index: int) -> RopeConfig:
        """The rotary embedding of this layer."""
        is_local = self.local_rope is not None and self._has_window(layer_index)
        return self.local_rope if is_local and self.local_rope else self.rope

    def is_moe_layer(self, layer_index: int) -> bool:
        """Whether this layer's MLP is a mixture of experts."""
        return self.moe is not None and layer_index not in self.moe.dense_layers

    def _has_window(self, layer_index: int) -> bool:
        assert 0 <= layer_index < self.num_layers, "a layer of the model"
        return self.window_layers is None or layer_index in self.window_layers
