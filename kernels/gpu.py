"""What a kernel has to know of the GPU that it is compiled for, whether that GPU is here or only described."""

from typing import Any, NamedTuple


class GpuTarget(NamedTuple):
    """sm: compute capability, as in 80. num_multiprocessors: how many programs run at a time at least."""

    sm: int
    num_multiprocessors: int


A100 = GpuTarget(80, 108)
H100 = GpuTarget(90, 132)
INTERPRETER = GpuTarget(
    80, 2
)  # what Triton's interpreter stands in for: few multiprocessors, so that a launch has few programs


def gpu_target(device: Any) -> GpuTarget | None:
    """Of a jax device, or of the description of one; None if it is no NVIDIA GPU."""
    capability = getattr(device, "compute_capability", None)
    if device.platform not in ("gpu", "cuda") or not isinstance(capability, str):
        return None
    if not capability.replace(".", "").isdigit():  # AMD's are names, as in gfx942
        return None
    return GpuTarget(int(capability.replace(".", "")), int(device.core_count))
