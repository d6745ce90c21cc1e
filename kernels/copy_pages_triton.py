"""Copying KV pages on a GPU: one launch for each array of a layer."""

import jax
import triton

from sarathi_jax.kernels.copy_pages_kernel import copy_pages_kernel
from sarathi_jax.kernels.gpu import GpuTarget
from sarathi_jax.kernels.layer_kv import LayerKV
from sarathi_jax.kernels.triton_launch import KernelCall

BLOCK = 2048  # numbers a program copies


def copy_pages(kv: LayerKV, sources: jax.Array, targets: jax.Array, *, page_size: int, target: GpuTarget) -> LayerKV:
    """As `copy_pages_xla.copy_pages`, for this GPU."""

    def copy(array: jax.Array) -> jax.Array:
        call = plan_launch(sources.shape[0], array.shape[0] // page_size, page_size * array[0].size, target)
        return call(in_place=(array,), inputs=(sources, targets))[0]

    return LayerKV(*map(copy, kv.arrays))


def plan_launch(num_pairs: int, num_pages: int, numbers_per_page: int, target: GpuTarget) -> KernelCall:
    """The launch of one shape."""
    constants = {"NUM_PAGES": num_pages, "NUMBERS": numbers_per_page, "BLOCK": BLOCK}
    return KernelCall(copy_pages_kernel, num_pairs * triton.cdiv(numbers_per_page, BLOCK), constants, 4, 1, target)
