"""Rotation and KV write on a GPU, in one launch."""

import jax
import triton

from sarathi_jax.kernels.gpu import GpuTarget
from sarathi_jax.kernels.layer_kv import LayerKV
from sarathi_jax.kernels.rope_write_kernel import rope_write_kernel
from sarathi_jax.kernels.rope_write_xla import check_shapes
from sarathi_jax.kernels.triton_launch import KernelCall


def rope_and_write_kv(
    qkv: jax.Array, cos: jax.Array, sin: jax.Array, kv: LayerKV, slot_mapping: jax.Array, *, target: GpuTarget
) -> tuple[jax.Array, LayerKV]:
    """As `rope_write_xla.rope_and_write_kv`, for this GPU."""
    check_shapes(qkv, cos, sin, kv, slot_mapping)
    num_tokens, num_kv_heads, parts, head_dim = qkv.shape
    call = plan_launch(
        num_tokens, num_kv_heads, parts - 2, head_dim, kv.k.shape[0], target, is_quantized=kv.is_quantized
    )
    unused = () if kv.is_quantized else (cos, sin)
    q = jax.ShapeDtypeStruct((num_tokens, num_kv_heads * (parts - 2), head_dim), qkv.dtype)
    *pages, q = call(in_place=kv.arrays, inputs=(*unused, qkv, cos, sin, slot_mapping), outputs=(q,))
    return q, LayerKV(*pages)


def plan_launch(
    num_tokens: int,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    num_slots: int,
    target: GpuTarget,
    *,
    is_quantized: bool,
) -> KernelCall:
    """The launch of one shape."""
    constants = {
        "NUM_SLOTS": num_slots,
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": group,
        "PARTS_PAD": triton.next_power_of_2(group + 2),
        "HEAD_DIM": head_dim,
        "HALF_PAD": triton.next_power_of_2(head_dim // 2),
        "HAS_SCALES": is_quantized,
    }
    return KernelCall(rope_write_kernel, num_tokens * num_kv_heads, constants, num_warps=2, num_stages=1, target=target)
