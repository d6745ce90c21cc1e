"""`config.json` (and `generation_config.json`) of a Hugging Face model folder, as a `ModelConfig`.

Absent fields mean what transformers takes them to mean. A field that changes what a model computes, and that is not
implemented here, is refused: a model must not run as another one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sarathi_jax.checkpoints.config_fields import ConfigFields
from sarathi_jax.checkpoints.json_file import read_json_object
from sarathi_jax.checkpoints.rope_config import read_rope_config
from sarathi_jax.errors import ModelError
from sarathi_jax.models.config import ModelConfig

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
DEFAULT_BOS_TOKEN_ID = 1
DEFAULT_EOS_TOKEN_ID = 2
ACTIVATIONS = ("silu", "swish")  # two names of one function
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What fields mean in one class of transformers: its family here, and its defaults.

    num_kv_heads: where the file says nothing; None: as many as query heads.
    sliding_window: where the file says nothing; None: no window, whatever the file says.
    """

    family: str
    max_position_embeddings: int
    num_kv_heads: int | None
    sliding_window: int | None
    can_have_biases: bool


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", 2048, None, None, can_have_biases=True),
    "MistralForCausalLM": Architecture("mistral", 4096 * 32, 8, 4096, can_have_biases=False),
}


def read_model_config(folder: Path | str) -> ModelConfig:
    """The configuration of a model folder. Reads no weights.

    Raises: ModelNotFoundError without config.json; ModelError, naming the field, if one is missing, wrong, or asks for
      what is not implemented."""
    path = Path(folder) / CONFIG_NAME
    fields = ConfigFields(path, read_json_object(path))
    architecture = _read_architecture(fields)
    _refuse_what_is_not_implemented(fields, architecture)
    num_heads = fields.integer("num_attention_heads")
    vocab_size = fields.integer("vocab_size")
    max_position_embeddings = fields.integer_or_none("max_position_embeddings")
    max_position_embeddings = max_position_embeddings or architecture.max_position_embeddings
    bos_token_ids = fields.token_ids("bos_token_id", DEFAULT_BOS_TOKEN_ID, vocab_size)
    return ModelConfig(
        family=architecture.family,
        vocab_size=vocab_size,
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_read_num_kv_heads(fields, architecture, num_heads),
        head_dim=_read_head_dim(fields, num_heads),
        max_position_embeddings=max_position_embeddings,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=read_rope_config(fields, max_position_embeddings),
        is_head_tied=fields.boolean("tie_word_embeddings"),
        has_attention_bias=fields.boolean("attention_bias"),
        has_mlp_bias=fields.boolean("mlp_bias"),
        sliding_window=_read_sliding_window(fields, architecture),
        bos_token_id=bos_token_ids[0] if bos_token_ids else None,
        eos_token_ids=_read_eos_token_ids(fields, vocab_size),
        pad_token_id=_read_pad_token_id(fields, vocab_size),
        dtype=_read_dtype(fields),
    )


def _read_architecture(fields: ConfigFields) -> Architecture:
    names = fields.get("architectures")
    supported = ", ".join(ARCHITECTURES)
    if names is None:  # files written by hand may name the family only
        for architecture in ARCHITECTURES.values():
            if fields.get("model_type") == architecture.family:
                return architecture
        raise ModelError(
            f"{fields.path}: architectures must name one of {supported}, got nothing, and"
            f" model_type={fields.get('model_type')!r}: use one of these, or add it."
        )
    name = cast("list[object]", names)[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        fields.refuse("architectures", f"must name one of {supported}", remedy="use a model of one of these")
    return ARCHITECTURES[name]


def _refuse_what_is_not_implemented(fields: ConfigFields, architecture: Architecture) -> None:
    if fields.get("quantization_config") is not None:
        fields.refuse("quantization_config", "must not be there", remedy="use weights that are not quantized")
    if fields.get("hidden_act") is not None and fields.get("hidden_act") not in ACTIVATIONS:
        fields.refuse("hidden_act", "must be silu", remedy="use another model")
    if fields.get("layer_types") is not None:
        fields.refuse("layer_types", "must not be there: all layers attend alike", remedy="use another model")
    for name in ("attention_bias", "mlp_bias"):
        if fields.boolean(name) and not architecture.can_have_biases:
            fields.refuse(name, f"must be false in a {architecture.family} model", remedy="correct it")


def _read_num_kv_heads(fields: ConfigFields, architecture: Architecture, num_heads: int) -> int:
    num_kv_heads = fields.integer_or_none("num_key_value_heads", architecture.num_kv_heads) or num_heads
    if num_heads % num_kv_heads:
        raise ModelError(
            f"{fields.path}: num_attention_heads={num_heads} must be a multiple of num_key_value_heads={num_kv_heads},"
            " got a remainder: correct one of them."
        )
    return num_kv_heads


def _read_head_dim(fields: ConfigFields, num_heads: int) -> int:
    head_dim, hidden_size = fields.integer_or_none("head_dim"), fields.integer("hidden_size")
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


def _read_sliding_window(fields: ConfigFields, architecture: Architecture) -> int | None:
    if architecture.sliding_window is None:
        return None
    return fields.integer_or_none("sliding_window", architecture.sliding_window)


def _read_eos_token_ids(fields: ConfigFields, vocab_size: int) -> tuple[int, ...]:
    """What ends an output: generation_config.json goes before config.json, as in transformers."""
    path = fields.path.with_name(GENERATION_CONFIG_NAME)
    if path.is_file():
        generation = ConfigFields(path, read_json_object(path))
        if ids := generation.token_ids("eos_token_id", None, vocab_size):
            return ids
    return fields.token_ids("eos_token_id", DEFAULT_EOS_TOKEN_ID, vocab_size)


def _read_pad_token_id(fields: ConfigFields, vocab_size: int) -> int | None:
    if fields.get("pad_token_id") == -1:  # how the first Llama folders say that there is none
        return None
    ids = fields.token_ids("pad_token_id", None, vocab_size)
    return ids[0] if ids else None


def _read_dtype(fields: ConfigFields) -> str:
    name = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    dtype = fields.get(name)
    if dtype is None:
        return DTYPES[0]
    if dtype not in DTYPES:
        fields.refuse(name, f"must be one of {', '.join(DTYPES)}", remedy="convert the weights")
    return cast("str", dtype)
