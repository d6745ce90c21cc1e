"""What `generate` needs of a model, its own or anybody's: a configuration and two functions. Checked before anything is compiled, since a model that calls
`attend` in another way would only give other tokens."""

import inspect
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from sarathi_jax.errors import ModelError
from sarathi_jax.models.attention import Attend
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.rope import RopeAngles

# Of the trial: no size that a model has for other reasons matters.
NUM_TOKENS, NUM_ROWS = 5, 3
REMEDY = "see docs/own-model.md."


class GenerativeModel(Protocol):
    """A Flax NNX module that gives logits for the tokens of a step, which belong to any number of sequences.

    It knows its tokens and their positions, and nothing of the sequences: whatever looks at other tokens goes through `attend`.
    """

    @property
    def config(self) -> ModelConfig:
        """vocab_size, hidden_size, num_layers, num_heads, num_kv_heads, head_dim and max_position_embeddings must be the module's. eos_token_ids end an
        output; sliding_window, window_layers, query_scalar and attention_soft_cap are what `attend` does. intermediate_size is used to estimate memory; all
        else is unused."""
        ...

    def hidden_states(
        self, token_ids: jax.Array, positions: jax.Array, attend: Attend, *, max_length: int | None = None
    ) -> jax.Array:
        """What `logits` takes, of each token.

        Args:
          token_ids, positions: i32[T]. What comes of padding tokens is not looked at.
          attend: to be called once a layer, with the layer's index, [T, K, G + 2, D] (of each KV head its G queries, its key, its value) and cos and sin of
            the rotation, f32[T, D / 2] each. Returns: [T, H, D], of the same dtype.
          max_length: the longest sequence there can be, in tokens.
        Returns: [T, E]."""
        ...

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden: [R, E], any rows of what `hidden_states` returned. Returns: f32[R, V]."""
        ...


def check_model(model: Any, *, is_constrained: bool) -> None:
    """See that a module keeps to `GenerativeModel`, by running it once without values.

    Args:
      is_constrained: sharding rules cut the residual stream: `hidden_states` has to take `constrain` as well.
    Raises: ModelError that says what is missing or of which shape."""
    if not isinstance(model, nnx.Module):
        raise ModelError(f"A model must be a Flax NNX module, got {type(model).__name__}: {REMEDY}")
    name, config = type(model).__name__, getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise ModelError(
            f"{name}.config must be a sarathi_jax.models.ModelConfig, got {type(config).__name__}: give the module its shape; {REMEDY}"
        )
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise ModelError(
            f"{name}.config must have num_heads that are a multiple of num_kv_heads, and an even head_dim, got {config.num_heads}, {config.num_kv_heads} and"
            f" {config.head_dim}: correct it."
        )
    options = {"constrain": None} if is_constrained else {}
    _check_call(name, model, "hidden_states", "token_ids", "positions", "attend", max_length=None, **options)
    _check_call(name, model, "logits", "hidden")
    graph, state = nnx.split(model)
    jax.eval_shape(lambda leaves: _try(name, config, nnx.merge(graph, leaves), options), state)


def _check_call(name: str, model: Any, method: str, *words: str, **options: None) -> None:
    signature = ", ".join([*words, *(f"{option}=" for option in options)])
    function = getattr(model, method, None)
    try:
        if not callable(function):
            raise TypeError("no such method")
        inspect.signature(function).bind(*words, **options)
    except TypeError as error:
        raise ModelError(f"{name} must have {method}({signature}), got {error}: add it; {REMEDY}") from error


def _try(name: str, config: ModelConfig, model: Any, options: dict[str, None]) -> None:
    attended: list[int] = []
    embed, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim

    def attend(layer_index: int, qkv: jax.Array, angles: RopeAngles) -> jax.Array:
        _check_attend(name, config, layer_index, qkv, angles)
        attended.append(layer_index)
        return jnp.zeros((NUM_TOKENS, heads, head_dim), qkv.dtype)

    token_ids = positions = jnp.zeros(NUM_TOKENS, jnp.int32)
    constrain: dict[str, Any] = {option: lambda x: x for option in options}
    hidden = model.hidden_states(token_ids, positions, attend, max_length=config.max_position_embeddings, **constrain)
    if sorted(attended) != list(range(config.num_layers)):
        raise ModelError(
            f"{name}.hidden_states must call attend once for each of its {config.num_layers} layers, 0 to {config.num_layers - 1}, got calls for"
            f" {attended}: correct its config, or what it calls; {REMEDY}"
        )
    _check_array(f"{name}.hidden_states must return", hidden, "[T, E]", (NUM_TOKENS, embed), None)
    logits = model.logits(jnp.zeros((NUM_ROWS, embed), hidden.dtype))
    _check_array(f"{name}.logits must return", logits, "f32[R, V]", (NUM_ROWS, config.vocab_size), jnp.float32)


def _check_attend(name: str, config: ModelConfig, layer_index: int, qkv: jax.Array, angles: RopeAngles) -> None:
    if not isinstance(layer_index, int):
        raise ModelError(
            f"{name} must call attend with a layer's index, a number, got {type(layer_index).__name__}: run the layers in a Python loop, not a scan; {REMEDY}"
        )
    shape = (NUM_TOKENS, config.num_kv_heads, config.num_queries_per_kv + 2, config.head_dim)
    _check_array(f"{name} must call attend with qkv", qkv, "[T, K, G + 2, D]", shape, None)
    cos, sin = angles
    for each, value in (("cos", cos), ("sin", sin)):
        shape = (NUM_TOKENS, config.head_dim // 2)
        _check_array(f"{name} must call attend with {each}", value, "f32[T, D / 2]", shape, jnp.float32)


def _check_array(rule: str, value: Any, letters: str, shape: tuple[int, ...], dtype: Any) -> None:
    got = f"{value.dtype}{list(value.shape)}" if isinstance(value, jax.Array) else type(value).__name__
    is_right = isinstance(value, jax.Array) and value.shape == shape
    is_right = is_right and (value.dtype == dtype if dtype else jnp.issubdtype(value.dtype, jnp.floating))
    if not is_right:
        raise ModelError(
            f"{rule} {letters}, which is {list(shape)} for a trial of T={NUM_TOKENS} tokens and R={NUM_ROWS} rows, got {got}: correct it, or the config; {REMEDY}"
        )
