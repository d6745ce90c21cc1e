"""Fields of a configuration file that nearly all families spell alike, and checks of those that no family here implements.

Absent fields mean what transformers takes them to mean, which families say. A field that changes what a model computes, and that is not implemented, is
refused: a model must not run as another one.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from sarathi_jax.errors import ModelError
from sarathi_jax.models.config import Activation, ModelConfig, MoEConfig, RopeConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.rope_fields import read_rope

LAYER_KINDS = ("full_attention", "sliding_attention")
DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


class Absent(NamedTuple):
    """What fields mean where a family's file says nothing. intermediate_size None: it has to be there. num_kv_heads None: as many as query heads. head_dim
    None: hidden size over heads."""

    max_position_embeddings: int
    intermediate_size: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    is_head_tied: bool = False
    rope_theta: float = 10000.0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class Windows(NamedTuple):
    """`sliding_window` and `window_layers` of a ModelConfig."""

    size: int | None
    layers: tuple[int, ...] | None


def read_base(fields: ConfigFields, family: str, absent: Absent, rope: RopeConfig | None = None) -> ModelConfig:
    """A configuration with the fields that families share; what else theirs holds, they put in with `dataclasses.replace`.

    Args:
      rope: of families that spell it in a way of their own.
    Raises: ModelError, naming the field, if one is missing, wrong, or asks for what is not implemented.
    """
    refuse_quantization(fields)
    num_heads = fields.integer("num_attention_heads")
    vocab_size = fields.integer("vocab_size")
    max_position_embeddings = fields.integer_or_none("max_position_embeddings") or absent.max_position_embeddings
    bos_token_ids = fields.token_ids("bos_token_id", absent.bos_token_id, vocab_size)
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=_read_or(fields, "intermediate_size", absent.intermediate_size),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=read_num_kv_heads(fields, num_heads, absent.num_kv_heads),
        head_dim=read_head_dim(fields, num_heads, absent.head_dim),
        max_position_embeddings=max_position_embeddings,
        norm_eps=fields.number("rms_norm_eps", absent.rms_norm_eps),
        rope=rope or read_rope(fields, max_position_embeddings, absent.rope_theta),
        is_head_tied=fields.boolean("tie_word_embeddings", absent.is_head_tied),
        bos_token_id=bos_token_ids[0] if bos_token_ids else None,
        eos_token_ids=fields.token_ids("eos_token_id", absent.eos_token_id, vocab_size),
        pad_token_id=read_pad_token_id(fields, absent.pad_token_id, vocab_size),
        dtype=read_dtype(fields),
    )


def read_activation(fields: ConfigFields, name: str, absent: str, allowed: tuple[Activation, ...]) -> Activation:
    """The activation function. Raises: ModelError if it is none of `allowed`."""
    value = fields.get(name) or absent
    activation = ACTIVATIONS.get(value) if isinstance(value, str) else None
    if activation not in allowed:
        fields.refuse(name, f"must be {' or '.join(allowed)}", remedy="use another model")
    return activation


def refuse_quantization(fields: ConfigFields) -> None:
    """Raises: ModelError if the weights are in a format of fewer bits."""
    if fields.get("quantization_config") is not None:
        fields.refuse("quantization_config", "must not be there", remedy="use weights that are not quantized")


def refuse_biases(fields: ConfigFields, family: str, *names: str) -> None:
    """Raises: ModelError if the file asks for biases that models of the family have not."""
    for name in names:
        if fields.boolean(name):
            fields.refuse(name, f"must be false in a {family} model", remedy="correct it")


def refuse_layer_types(fields: ConfigFields, kind: str) -> None:
    """Raises: ModelError if the file has layers of another kind of attention."""
    types = fields.get("layer_types")
    if types is not None and (not isinstance(types, list) or set(cast("list[Any]", types)) != {kind}):
        fields.refuse(
            "layer_types", f"must all be {kind}, or not be there: all layers attend alike", remedy="use another model"
        )


def read_windows(fields: ConfigFields, num_layers: int, size: int | None, absent_layers: Iterable[int]) -> Windows:
    """Which layers have a sliding window: those of `layer_types` that have it, or `absent_layers` where the file says nothing.

    Args:
      size: of the window, in tokens; None if the file has none.
    Raises: ModelError if there are layers of another kind, of another number, or with a window that has no size.
    """
    kinds = fields.get("layer_types")
    layers = tuple(absent_layers)
    if kinds is not None:
        rule = f"must be one of {' or '.join(LAYER_KINDS)} for each of {num_layers} layers"
        if not isinstance(kinds, list) or len(cast("list[Any]", kinds)) != num_layers:
            fields.refuse("layer_types", rule)
        if not all(kind in LAYER_KINDS for kind in cast("list[Any]", kinds)):
            fields.refuse("layer_types", rule, remedy="use another model")
        layers = tuple(index for index, kind in enumerate(cast("list[str]", kinds)) if kind == LAYER_KINDS[1])
    if not layers:
        return Windows(None, ())
    if size is None:
        fields.refuse("sliding_window", f"must be there, and in use, since layer {layers[0]} has a window")
    return Windows(size, None if len(layers) == num_layers else layers)


def read_moe(fields: ConfigFields, num_experts_name: str, num_experts: int, num_per_token: int, size: int) -> MoEConfig:
    """Experts, all of whose layers have them.

    Args:
      num_experts_name: of their field; num_experts, num_per_token: what it and `num_experts_per_tok` mean where the file says nothing.
      size: width of an expert.
    Raises: ModelError if a token is to have more experts than there are.
    """
    num_experts = _read_or(fields, num_experts_name, num_experts)
    num_per_token = _read_or(fields, "num_experts_per_tok", num_per_token)
    if num_per_token > num_experts:
        fields.refuse("num_experts_per_tok", f"must be at most {num_experts_name}={num_experts}")
    return MoEConfig(num_experts=num_experts, num_experts_per_token=num_per_token, expert_size=size)


def read_num_kv_heads(fields: ConfigFields, num_heads: int, absent: int | None) -> int:
    name = "num_key_value_heads"
    num_kv_heads = fields.integer_or_none(name, absent) or num_heads
    if num_heads % num_kv_heads:
        raise ModelError(
            f"{fields.path}: num_attention_heads={num_heads} must be a multiple of {fields.name(name)}={num_kv_heads},"
            " got a remainder: correct one of them."
        )
    return num_kv_heads


def read_head_dim(fields: ConfigFields, num_heads: int, absent: int | None = None) -> int:
    head_dim, hidden_size = fields.integer_or_none("head_dim", absent), fields.integer("hidden_size")
    if head_dim is None and hidden_size % num_heads:
        raise ModelError(
            f"{fields.path}: without head_dim, hidden_size={hidden_size} must be a multiple of"
            f" num_attention_heads={num_heads}, got a remainder: add head_dim, or correct one of them."
        )
    head_dim = head_dim or hidden_size // num_heads
    if head_dim % 2:
        raise ModelError(
            f"{fields.path}: head_dim must be even, since rotary embeddings turn pairs, got {head_dim}: correct"
            " head_dim, hidden_size or num_attention_heads."
        )
    return head_dim


def read_pad_token_id(fields: ConfigFields, absent: int | None, vocab_size: int) -> int | None:
    if fields.get("pad_token_id") == -1:  # how the first Llama folders say that there is none
        return None
    ids = fields.token_ids("pad_token_id", absent, vocab_size)
    return ids[0] if ids else None


def _read_or(fields: ConfigFields, name: str, absent: int | None) -> int:
    return fields.integer(name) if absent is None else fields.integer_or_none(name) or absent


def read_dtype(fields: ConfigFields) -> str:
    name = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    dtype = fields.get(name)
    if dtype is None:
        return DTYPES[0]
    if dtype not in DTYPES:
        fields.refuse(name, f"must be one of {', '.join(DTYPES)}", remedy="convert the weights")
    return cast("str", dtype)
