"""What the cost model has to know of a model: sizes, and what a step reads and multiplies of them. Knows nothing of jax, nor of files."""

from dataclasses import dataclass

from sarathi_jax.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only model, letters as in docs/shapes.md.

    mlp_size: F, of one expert where there are experts. num_mlp_matrices: 3 with a gate, else 2.
    num_experts: 0 is a dense model. experts_per_token: of the experts, how many each token goes through.
    dense_layers: layers that have no experts all the same, but an MLP of dense_mlp_size.
    num_all_reduces_per_layer: 1 where attention and MLP are added up together (Falcon's parallel block), else 2.
    num_norms_per_layer: of whole tokens.
    windows: tokens that a query sees, one entry a layer, None all before it; () is None for every layer.
    weight_itemsize, kv_itemsize: bytes of a number. kv_scale_bytes: of each token and head, keys and values each, where KV is quantized.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    vocab_size: int
    num_mlp_matrices: int = 3
    num_experts: int = 0
    experts_per_token: int = 0
    dense_layers: tuple[int, ...] = ()
    dense_mlp_size: int = 0
    num_all_reduces_per_layer: int = 2
    num_norms_per_layer: int = 2
    is_head_tied: bool = False
    windows: tuple[int | None, ...] = ()
    weight_itemsize: int = 2
    kv_itemsize: int = 2
    kv_scale_bytes: int = 0

    def __post_init__(self) -> None:
        if self.windows and len(self.windows) != self.num_layers:
            raise ConfigError(
                f"windows must have an entry for each of {self.num_layers} layers, got {len(self.windows)}: add or leave out some."
            )
        if not 0 <= self.experts_per_token <= self.num_experts or (self.num_experts > 0) != (
            self.experts_per_token > 0
        ):
            raise ConfigError(
                f"experts_per_token must be between 1 and num_experts={self.num_experts}, or 0 without experts, got {self.experts_per_token}:"
                " correct one of the two."
            )

    @property
    def mlp_parameters(self) -> int:
        """Of one layer's MLP, or of one of its experts."""
        return self.num_mlp_matrices * self.hidden_size * self.mlp_size

    @property
    def dense_mlp_parameters(self) -> int:
        """Of the MLP of a layer without experts."""
        return self.num_mlp_matrices * self.hidden_size * (self.dense_mlp_size if self.num_experts else self.mlp_size)

    @property
    def router_parameters(self) -> int:
        return self.hidden_size * self.num_experts

    @property
    def vocab_parameters(self) -> int:
        """Of the embedding, and as many of the head."""
        return self.hidden_size * self.vocab_size

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token and one KV head in one layer."""
        return 2 * (self.head_dim * self.kv_itemsize + self.kv_scale_bytes)

    def kind(self, layer: int) -> tuple[int | None, bool]:
        """What tells layers apart: the window, None being none, and whether there are experts."""
        window = self.windows[layer] if self.windows else None
        return window, self.num_experts > 0 and layer not in self.dense_layers
