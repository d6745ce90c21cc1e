"""Sampling's thresholds on a GPU, in one launch."""

import jax
import jax.numpy as jnp
import triton

from sarathi_jax.kernels.filter_thresholds_kernel import filter_thresholds_kernel
from sarathi_jax.kernels.gpu import GpuTarget
from sarathi_jax.kernels.triton_launch import KernelCall

MAX_BLOCK = 8192  # logits that a program looks at at a time
THREADS_A_WARP, LOGITS_A_THREAD = 32, 16


def filter_thresholds(
    logits: jax.Array,
    max_logits: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    *,
    target: GpuTarget,
) -> jax.Array:
    """As `filter_thresholds_xla.filter_thresholds`, for this GPU."""
    num_rows, vocab_size = logits.shape
    call = plan_launch(num_rows, vocab_size, target)
    out = jax.ShapeDtypeStruct((num_rows,), jnp.float32)
    return call(inputs=(logits, max_logits, temperature, top_k, top_p), outputs=(out,))[0]


def plan_launch(num_rows: int, vocab_size: int, target: GpuTarget) -> KernelCall:
    """The launch of one shape."""
    block = min(triton.next_power_of_2(vocab_size), MAX_BLOCK)
    num_warps = min(max(block // (THREADS_A_WARP * LOGITS_A_THREAD), 1), 32)
    constants = {"VOCAB": vocab_size, "BLOCK": block}
    return KernelCall(filter_thresholds_kernel, num_rows, constants, num_warps, 1, target)
