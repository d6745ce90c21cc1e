"""What a model is, whatever file it came from: the numbers that its modules, its KV cache and its memory plan are built from.

Reading `config.json` is `sarathi_jax.checkpoints.model_config`'s; this module knows nothing of files.
"""

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding and how it is stretched past the trained length.

    theta: base of the geometric series of wavelengths.
    factor: how many times longer than `original_max_position` the context is to be (unused by `default`).
    original_max_position: length the model was trained at, in tokens.
    low_freq_factor, high_freq_factor: `llama3` only.
    beta_fast, beta_slow, is_truncated, attention_factor: `yarn` only; attention_factor None is 0.1 ln(factor) + 1.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and constants of a decoder-only model. Hashable: compiled programs are keyed by it.

    family: the name of the module in `sarathi_jax.models` that builds it.
    sliding_window: tokens a query sees, itself included; None: all before it.
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
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    is_head_tied: bool = False
    has_attention_bias: bool = False
    has_mlp_bias: bool = False
    sliding_window: int | None = None
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
        return self.head_dim**-0.5

    def window(self, layer_index: int) -> int | None:
        """Tokens that a query of this layer sees, itself included; None: all before it."""
        assert 0 <= layer_index < self.num_layers, "a layer of the model"
        return self.sliding_window
