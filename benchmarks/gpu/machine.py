"""What the card was measured on: versions, device, driver, commit. `rows` is a child's, since asking jax for a device takes hold of it."""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gpu.order import Order, Row

ROOT = Path(__file__).parents[2]
PACKAGES = ("jax", "jaxlib", "jax-triton", "triton", "flax", "numpy", "torch", "transformers")


def rows(order: Order) -> Iterator[Row]:
    """One row: the first device that jax sees, and why its attention is not the GPU's own, if it is not."""
    import jax

    from benchmarks.gpu.checks import attention_obstacle

    del order
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    yield {
        "kind": "device",
        "case": "device",
        "platform": device.platform,
        "name": device.device_kind,
        "compute_capability": getattr(device, "compute_capability", None),
        "num_multiprocessors": getattr(device, "core_count", None),
        "memory_bytes": stats.get("bytes_limit") if stats else None,
        "obstacle": attention_obstacle(device),
    }


def versions() -> dict[str, str | None]:
    """Of the packages that matter; None: not installed. Imports none of them."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES} | {"driver": _driver()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip().partition("\n")[0] or None


def commit() -> str:
    """The commit that was measured, with a mark if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    except OSError:
        return "unknown"  # no git here
    return done.stdout.strip() or "unknown"
