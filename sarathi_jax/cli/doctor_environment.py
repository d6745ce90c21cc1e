"""What `doctor` finds of this machine: versions, devices, kernels, and what stands in the way."""

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sarathi_jax import __version__
from sarathi_jax.gpu_defaults import devices, has_driver, has_plugin

NEEDED = (
    "jax",
    "jaxlib",
    "flax",
    "orbax-checkpoint",
    "numpy",
    "safetensors",
    "tokenizers",
    "jinja2",
    "tqdm",
    "huggingface-hub",
)
OPTIONAL = ("jax-triton", "triton", "jax-cuda12-plugin", "jax-cuda13-plugin", "llguidance", "matplotlib")


def examine() -> dict[str, Any]:
    """Everything the report says, as JSON."""
    versions = {name: installed_version(name) for name in (*NEEDED, *OPTIONAL)}
    report: dict[str, Any] = {
        "sarathi_jax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "free_disk_bytes": shutil.disk_usage(".").free,
        "versions": versions,
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))},
        "devices": [],
        "kernels": {},
        "problems": find_problems(versions),
        "hints": find_hints(is_gpu_here=has_driver(), is_plugin_here=has_plugin()),
    }
    if versions["jax"]:
        add_devices(report)
        report["problems"] += find_lost_gpu(report["devices"], is_gpu_here=has_driver() and has_plugin())
        add_kernels(report)
    return report


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def find_problems(versions: dict[str, str | None]) -> list[str]:
    """One sentence a problem, with its remedy."""
    problems = [f"{name} is not installed: pip install sarathi-jax" for name in NEEDED if versions[name] is None]
    jax_version = versions["jax"]
    if jax_version and not (0, 11, 2) <= release(jax_version) < (0, 12):
        problems.append(f"jax must be >= 0.11.2 and < 0.12, got {jax_version}: pip install 'jax>=0.11.2,<0.12'")
    has_gpu_plugin = versions["jax-cuda12-plugin"] or versions["jax-cuda13-plugin"]
    if has_gpu_plugin and versions["jax-triton"] is None:
        problems.append("jax has its CUDA plugin but jax-triton is not installed: pip install 'sarathi-jax[cuda12]'")
    return problems


def find_hints(*, is_gpu_here: bool, is_plugin_here: bool) -> list[str]:
    """What is no fault, but may not be what was meant."""
    if is_gpu_here and not is_plugin_here:
        return [
            "there is an NVIDIA driver, but jax has no CUDA plugin and uses the CPU: pip install 'sarathi-jax[cuda12]'"
        ]
    if is_plugin_here and not is_gpu_here:
        return ["jax has its CUDA plugin, but there is no NVIDIA driver: it uses the CPU"]
    return []


def find_lost_gpu(devices: list[dict[str, Any]], *, is_gpu_here: bool) -> list[str]:
    """A GPU with all that it needs, and jax on the CPU all the same, unless that was asked for."""
    is_asked = os.environ.get("JAX_PLATFORMS") == "cpu"
    if not is_gpu_here or is_asked or any(device["platform"] != "cpu" for device in devices):
        return []
    return [
        "there is an NVIDIA driver and jax has its CUDA plugin, but jax uses the CPU: run python -c 'import jax; jax.devices()' and read why"
    ]


def release(text: str) -> tuple[int, ...]:
    """ "0.11.2rc1" -> (0, 11, 2)"""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def add_devices(report: dict[str, Any]) -> None:
    try:
        found = devices()
    except RuntimeError as error:
        report["problems"].append(f"jax finds no device: {' '.join(str(error).split())}")
        return
    for device in found:
        memory = device.memory_stats() or {}
        report["devices"].append(
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "memory_bytes": memory.get("bytes_limit"),
            }
        )


def add_kernels(report: dict[str, Any]) -> None:
    """Which implementation runs here, and what stands in the way of the others, for a KV cache of bfloat16 with heads of 128."""
    from sarathi_jax.kernels import registry

    if not report["devices"]:
        return
    use = registry.use_on(devices()[0], "bfloat16", 128)
    for name, implementation in registry.OPERATIONS["ragged_paged_attention"].items():
        report["kernels"][name] = implementation.obstacle(use) or "can run"
