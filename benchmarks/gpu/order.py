"""What the card's command and its child processes tell each other: an order in, rows out. Imports neither jax nor PyTorch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

type Row = dict[str, Any]

MAX_REASON = 300  # characters of an error that a row keeps
TINY_MODEL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "torch_dtype": "float32",
}


@dataclass(frozen=True, slots=True)
class Order:
    """What a child is to measure.

    model: a built-in shape, or a folder with a configuration.
    ceilings: `copy_bytes_per_s` and `matmul_flops_per_s` of this device; empty if they are not known.
    beside: rows of another library's child, by their `case`.
    has_flex: whether flex_attention is compiled and timed, which takes it minutes.
    """

    is_tiny: bool
    model: str
    ceilings: Mapping[str, float] = field(default_factory=dict)
    beside: Mapping[str, Row] = field(default_factory=dict)
    has_flex: bool = False

    @property
    def model_name(self) -> str:
        """For people: the folder of a tiny model has no name that matters."""
        return "tiny" if self.is_tiny else self.model

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Order":
        return cls(**json.loads(text))


class SkippedError(Exception):
    """What a case needs is not here; the text says what."""


def reason_of(error: BaseException) -> str:
    """An error as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_REASON]


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """The row with what was measured, or with `skipped` or `failed` and why: one case that fails does not cost the others."""
    try:
        return row | measure()
    except SkippedError as error:
        return row | {"skipped": str(error)}
    except Exception as error:
        return row | {"failed": reason_of(error)}
