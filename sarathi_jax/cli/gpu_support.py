"""Whether this machine has an NVIDIA driver, and jax its CUDA plugin: known without importing jax."""

import os
from importlib.util import find_spec
from pathlib import Path

DRIVER_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # Linux, and Linux under Windows
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def has_driver() -> bool:
    return any(Path(device).exists() for device in DRIVER_DEVICES)


def has_plugin() -> bool:
    return any(find_spec(name) for name in PLUGINS)


def prefer_cpu_without_gpu() -> None:
    """With the plugin installed and no driver, jax logs a long traceback before it falls back to the CPU: say so beforehand."""
    if has_plugin() and not has_driver():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
