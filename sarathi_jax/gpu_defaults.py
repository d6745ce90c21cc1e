"""What jax, XLA, NCCL and Triton are told before they start, on a machine with an NVIDIA GPU: all of it here, each with its reason.

Whatever the user has set stays as it is. Known without importing jax, which reads its environment when it makes its first device.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

DRIVER_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # Linux, and Linux under Windows
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

_quieting = RLock()


class Default(NamedTuple):
    """One setting. name: of an environment variable, of a flag in XLA_FLAGS, or of an option of each compile."""

    name: str
    value: str
    reason: str


MEMORY_FRACTION, NEW_MEMORY_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"
ENVIRONMENT = (
    Default(
        MEMORY_FRACTION,
        "0.95",
        "jax takes 75 % of the memory by default, and what it does not take no KV page can use; the rest is for CUDA graphs, NCCL and cuBLAS",
    ),
    Default(
        "TF_CPP_MIN_LOG_LEVEL",
        "1",
        "XLA's informational lines hide the engine's own",
    ),
)
TRITON = (
    Default(
        "TRITON_DEFAULT_FP_FUSION",
        "1",
        "products fused with sums, as the kernels were measured; from triton 3.10 on it is off unless asked for",
    ),
    Default(
        "TRITON_DISABLE_LINE_INFO",
        "1",
        "paths and line numbers in a kernel's code would make the same program another one in the next checkout, and the compile cache useless",
    ),
)
# CUDA graphs stay as XLA has them: with collectives inside graphs (+COLLECTIVES) training runs have hung, so the graph is cut at each all-reduce.
# Autotuning stays at its default level; its choices are kept on disk beside the compiled programs, in the folder that `use_compile_cache` sets.
XLA_FLAGS = (
    Default(
        "--xla_gpu_nccl_termination_timeout_seconds",
        "120",
        "without it a lost rank leaves the others waiting for ever; a step takes a second at most, the first meeting of all ranks some tens",
    ),
)


COMPILER_OPTIONS = (
    Default(
        "xla_disable_hlo_passes",
        "rematerialization",
        "XLA counts on 80 % of the memory, finds KV pages to fill it, and computes values twice to save what is not short: logits were gathered 5 times",
    ),
)


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return any(Path(device).exists() for device in DRIVER_DEVICES)


def has_plugin() -> bool:
    """Whether jax has its CUDA plugin."""
    return any(find_spec(name) for name in PLUGINS)


def compiler_options(platform: str) -> dict[str, str]:
    """What XLA is told with each program for a platform, as jax names it."""
    return {each.name: each.value for each in COMPILER_OPTIONS} if platform in ("gpu", "cuda") else {}


def apply_defaults() -> None:
    """Set what is not set yet. Does nothing to a jax that has made its devices already."""
    if not has_plugin():
        return
    if not has_driver():
        # jax logs a long traceback before it falls back to the CPU: say so beforehand.
        use_cpu()
        return
    set_unset(TRITON)
    # jax refuses to have both names of one setting.
    set_unset([each for each in ENVIRONMENT if each.name != MEMORY_FRACTION or NEW_MEMORY_FRACTION not in os.environ])
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"{each.name}={each.value}" for each in XLA_FLAGS if each.name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()


def set_unset(variables: Iterable[Default]) -> None:
    """Set environment variables that the user has left open."""
    for each in variables:
        os.environ.setdefault(each.name, each.value)


def use_cpu() -> None:
    """Keep jax away from GPUs, unless the user has said where it is to run."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    if "jax" in sys.modules:  # it has read the environment already, but may not have made its devices
        import jax

        if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def start_on_cpu() -> None:
    """`use_cpu`, with the devices made at once: for what runs no model, and may need them deep inside."""
    use_cpu()
    with suppress(RuntimeError):  # whoever needs them asks again, and hears why there are none
        devices()


def import_jax_quietly() -> None:
    """Where importing jax would not be quiet, import it now, `quiet_without_driver`; elsewhere it is for whoever needs it, and may be missing."""
    if is_noisy() and "jax" not in sys.modules:
        with quiet_libraries():
            import_module("jax")


def is_noisy() -> bool:
    """Whether jax's CUDA libraries complain here: they are there, and no driver is."""
    return has_plugin() and not has_driver()


def devices(platform: str | None = None) -> list[Any]:
    """jax's devices, made `quiet_without_driver` if there were none yet. Raises: RuntimeError if jax finds none."""
    import_jax_quietly()
    import jax

    with quiet_without_driver():
        return jax.devices(platform)


@contextmanager
def quiet_without_driver() -> Iterator[None]:
    """With the plugin and without a driver, each of jax's CUDA libraries says on standard error that it finds none, when jax is imported and when its devices are
    made, whatever log level is set: not in here."""
    with quiet_libraries() if is_noisy() else nullcontext():
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Whatever goes to standard error meanwhile is lost, also what libraries write past Python. Exceptions are not."""
    with _quieting:  # two threads at a time, and one would put back what the other has turned off
        sys.stderr.flush()
        saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)
