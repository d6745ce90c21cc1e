"""Which implementation of an operation runs: a table of names, what each of them can't serve, and a choice that is logged once.

All implementations of an operation have one signature and pass one contract test. The first in the table that can serve a use is taken, so faster
ones stand before `xla`, which serves everything.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from sarathi_jax.errors import ConfigError
from sarathi_jax.kernels import kv_write, ragged_attention_xla

logger = logging.getLogger(__name__)

AUTO = "auto"


class Use(NamedTuple):
    """What an implementation is asked to serve."""

    platform: str  # as jax names backends: "cpu", "gpu"
    dtype: np.dtype[Any]  # of the KV pages
    head_dim: int


class Implementation(NamedTuple):
    """A kernel, and why it can't serve a use (None: it can)."""

    function: Callable[..., Any]
    obstacle: Callable[[Use], str | None]


def _serves_everything(use: Use) -> None:
    del use


OPERATIONS: dict[str, dict[str, Implementation]] = {
    "ragged_paged_attention": {"xla": Implementation(ragged_attention_xla.ragged_paged_attention, _serves_everything)},
    "write_kv": {"xla": Implementation(kv_write.write_kv, _serves_everything)},
}


def choose(
    operation: str, *, platform: str, dtype: DTypeLike, head_dim: int, implementation: str = AUTO
) -> Callable[..., Any]:
    """The implementation of an operation that serves this use: the named one, or else the first that can.

    Args:
      operation: a key of `OPERATIONS`.
      platform, dtype, head_dim: the use, as in `Use`.
      implementation: its name; "auto" leaves the choice to the table's order.

    Returns: the function, of the operation's one signature.
    Raises: ConfigError if a name is wrong, or if the named implementation can't serve this use.
    """
    if operation not in OPERATIONS:
        raise ConfigError(f"{operation!r} is no operation: there is {', '.join(OPERATIONS)}.")
    candidates = OPERATIONS[operation]
    use = Use(platform, jax.numpy.dtype(dtype), head_dim)
    if implementation != AUTO:
        if implementation not in candidates:
            names = ", ".join([AUTO, *candidates])
            raise ConfigError(f"{implementation!r} is no implementation of {operation}: there is {names}.")
        chosen = candidates[implementation]
        if obstacle := chosen.obstacle(use):
            raise ConfigError(
                f"{implementation!r} can't serve {operation} here: {obstacle}. Use {_able(candidates, use)}."
            )
        _log_once(operation, implementation, "asked for by name")
        return chosen.function
    passed_over = []
    for name, candidate in candidates.items():
        obstacle = candidate.obstacle(use)
        if obstacle is None:
            _log_once(operation, name, "; ".join(passed_over) or "the first that can")
            return candidate.function
        passed_over.append(f"not {name}: {obstacle}")
    raise ConfigError(f"Nothing can serve {operation} here ({'; '.join(passed_over)}).")


def _able(candidates: Mapping[str, Implementation], use: Use) -> str:
    return ", ".join(name for name, candidate in candidates.items() if candidate.obstacle(use) is None)


@functools.cache
def _log_once(operation: str, name: str, reason: str) -> None:
    logger.info("%s: %s (%s)", operation, name, reason)
