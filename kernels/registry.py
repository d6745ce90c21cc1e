"""Which implementation of an operation runs: a table of names, what each of them can't serve, and a choice that is logged once.

All implementations of an operation have one signature and pass one contract test. The first in the table that can serve a use is taken, so faster
ones stand before `xla`, which serves everything.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from sarathi_jax.errors import ConfigError
from sarathi_jax.kernels import (
    copy_pages_xla,
    filter_thresholds_xla,
    ragged_attention_xla,
    rope_write_xla,
    triton_launch,
)
from sarathi_jax.kernels.gpu import INTERPRETER, GpuTarget, gpu_target
from sarathi_jax.kernels.layer_kv import LayerKV

logger = logging.getLogger(__name__)

AUTO = "auto"
# By compute capability: what its shared memory holds tiles of. Others are refused: their assemblers want other PTX, and end the process where they don't get it.
MAX_HEAD_DIMS = {80: 256, 86: 128, 89: 128, 90: 256}
TRITON_DTYPES = ("float32", "bfloat16", "float16", "int8")


class Use(NamedTuple):
    """What an implementation is asked to serve."""

    platform: str  # as jax names backends: "cpu", "gpu"
    dtype: np.dtype[Any]  # of the KV pages
    head_dim: int
    target: GpuTarget | None = None  # None: not an NVIDIA GPU


class Implementation(NamedTuple):
    """make: the kernel for a use. obstacle: why it can't serve one (None: it can)."""

    make: Callable[[Use], Callable[..., Any]]
    obstacle: Callable[[Use], str | None]


def use_on(device: Any, dtype: DTypeLike, head_dim: int) -> Use:
    """The use of a KV cache on a jax device, or on the description of one."""
    return Use(device.platform, jax.numpy.dtype(dtype), head_dim, gpu_target(device))


def _serves_everything(use: Use) -> None:
    del use


def _triton_obstacle(use: Use) -> str | None:
    if obstacle := triton_launch.obstacle(use.platform):
        return obstacle
    return "it needs an NVIDIA GPU, and this is another" if use.target is None else _kernel_obstacle(use)


def _interpreter_obstacle(use: Use) -> str | None:
    if use.dtype.name == "bfloat16":
        return "it computes bfloat16 wrongly"
    return triton_launch.interpreter_obstacle() or _kernel_obstacle(use)


def _kernel_obstacle(use: Use) -> str | None:
    if use.dtype.name not in TRITON_DTYPES:
        return f"its KV is one of {', '.join(TRITON_DTYPES)}, not {use.dtype.name}"
    sm = (use.target or INTERPRETER).sm
    if sm not in MAX_HEAD_DIMS:
        known = ", ".join(str(each / 10) for each in MAX_HEAD_DIMS)
        return f"its kernels are made for compute capabilities {known}, and this GPU has {sm / 10}"
    widest = MAX_HEAD_DIMS[sm]
    if use.head_dim > widest or use.head_dim % 2:
        return f"its heads are even and at most {widest} wide, not {use.head_dim}"
    return None


def _table(xla: Callable[..., Any], triton_module: str) -> dict[str, Implementation]:
    """xla: the plain function. triton_module: where the one of the same name for GPUs is; imported when it is chosen, since Triton may not be here."""

    def make_triton(use: Use) -> Callable[..., Any]:
        function = getattr(import_module(f"sarathi_jax.kernels.{triton_module}"), xla.__name__)
        return functools.partial(function, target=use.target or INTERPRETER)

    return {
        "triton": Implementation(make_triton, _triton_obstacle),
        "xla": Implementation(lambda use: xla, _serves_everything),
        # Last, so that it only runs for those who ask for it: it is there to check the kernels, and very slow.
        "triton-interpreter": Implementation(make_triton, _interpreter_obstacle),
    }


OPERATIONS: dict[str, dict[str, Implementation]] = {
    "ragged_paged_attention": _table(ragged_attention_xla.ragged_paged_attention, "ragged_attention_triton"),
    "rope_and_write_kv": _table(rope_write_xla.rope_and_write_kv, "rope_write_triton"),
    "filter_thresholds": _table(filter_thresholds_xla.filter_thresholds, "filter_thresholds_triton"),
    "copy_pages": _table(copy_pages_xla.copy_pages, "copy_pages_triton"),
}


def choose(operation: str, use: Use, *, implementation: str = AUTO) -> Callable[..., Any]:
    """The implementation of an operation that serves this use: the named one, or else the first that can.

    Args:
      operation: a key of `OPERATIONS`.
      implementation: its name; "auto" leaves the choice to the table's order.

    Returns: the function, of the operation's one signature.
    Raises: ConfigError if a name is wrong, or if the named implementation can't serve this use.
    """
    if operation not in OPERATIONS:
        raise ConfigError(f"{operation!r} is no operation: there is {', '.join(OPERATIONS)}.")
    candidates = OPERATIONS[operation]
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
        return chosen.make(use)
    passed_over = []
    for name, candidate in candidates.items():
        obstacle = candidate.obstacle(use)
        if obstacle is None:
            _log_once(operation, name, "; ".join(passed_over) or "the first that can")
            return candidate.make(use)
        passed_over.append(f"not {name}: {obstacle}")
    raise ConfigError(f"Nothing can serve {operation} here ({'; '.join(passed_over)}).")


def _able(candidates: Mapping[str, Implementation], use: Use) -> str:
    return ", ".join(name for name, candidate in candidates.items() if candidate.obstacle(use) is None)


class Kernels(NamedTuple):
    """The operations of a step, chosen."""

    attention: Callable[..., jax.Array]
    rope_and_write_kv: Callable[..., tuple[jax.Array, LayerKV]]
    filter_thresholds: Callable[..., jax.Array]


def choose_kernels(use: Use, *, implementation: str = AUTO) -> Kernels:
    """All of a step's operations, by one name. Raises: as `choose`."""
    operations = ("ragged_paged_attention", "rope_and_write_kv", "filter_thresholds")
    return Kernels(*(choose(operation, use, implementation=implementation) for operation in operations))


@functools.cache
def _log_once(operation: str, name: str, reason: str) -> None:
    logger.info("%s: %s (%s)", operation, name, reason)
