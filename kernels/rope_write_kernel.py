# Triton reads the source of these functions: its types are not Python's.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The device code of rotation and KV write, for Triton: a program takes one token of one KV head, its queries, its key and its value."""

import triton
import triton.language as tl


@triton.jit
def rope_write_kernel(
    k_pages, v_pages, k_scales, v_scales, qkv, cos, sin, slot_mapping, q,
    NUM_SLOTS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PARTS_PAD: tl.constexpr, HEAD_DIM: tl.constexpr,
    HALF_PAD: tl.constexpr, HAS_SCALES: tl.constexpr,
):  # fmt: skip
    """Grid: (T * K,)."""
    HALF: tl.constexpr = HEAD_DIM // 2
    token, kv_head = tl.program_id(0) // NUM_KV_HEADS, tl.program_id(0) % NUM_KV_HEADS
    part = tl.arange(0, PARTS_PAD)  # G queries, the key, the value
    dims = tl.arange(0, HALF_PAD)
    is_dim = (dims < HALF)[None, :]
    at = (tl.program_id(0) * (GROUP + 2) + part)[:, None] * HEAD_DIM + dims[None, :]
    is_part = (part < GROUP + 2)[:, None] & is_dim
    first = tl.load(qkv + at, mask=is_part, other=0).to(tl.float32)
    second = tl.load(qkv + at + HALF, mask=is_part, other=0).to(tl.float32)
    cosine = tl.load(cos + token * HALF + dims, mask=dims < HALF, other=0)[None, :]
    sine = tl.load(sin + token * HALF + dims, mask=dims < HALF, other=0)[None, :]
    is_value = (part == GROUP + 1)[:, None]
    turned_first = tl.where(is_value, first, first * cosine - second * sine)
    turned_second = tl.where(is_value, second, second * cosine + first * sine)

    q_at = q + (token * NUM_KV_HEADS * GROUP + kv_head * GROUP + part)[:, None] * HEAD_DIM + dims[None, :]
    is_query = (part < GROUP)[:, None] & is_dim
    tl.store(q_at, turned_first.to(q.dtype.element_ty), mask=is_query)
    tl.store(q_at + HALF, turned_second.to(q.dtype.element_ty), mask=is_query)

    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot < NUM_SLOTS:
        row = slot * NUM_KV_HEADS + kv_head
        # As the model's numbers are, whatever the pages hold of them.
        turned_first = turned_first.to(q.dtype.element_ty).to(tl.float32)
        turned_second = turned_second.to(q.dtype.element_ty).to(tl.float32)
        if HAS_SCALES:
            highest = tl.max(tl.maximum(tl.abs(turned_first), tl.abs(turned_second)), 1)
            scale = tl.where(highest == 0, 1.0, highest / 127)
            tl.store(k_scales + row + part * 0, scale, mask=part == GROUP)
            tl.store(v_scales + row + part * 0, scale, mask=part == GROUP + 1)
            turned_first = tl.floor(turned_first / scale[:, None] + 0.5)
            turned_second = tl.floor(turned_second / scale[:, None] + 0.5)
        page_at = row * HEAD_DIM + part[:, None] * 0 + dims[None, :]
        is_key = (part == GROUP)[:, None] & is_dim
        tl.store(k_pages + page_at, turned_first.to(k_pages.dtype.element_ty), mask=is_key)
        tl.store(k_pages + page_at + HALF, turned_second.to(k_pages.dtype.element_ty), mask=is_key)
        tl.store(v_pages + page_at, turned_first.to(v_pages.dtype.element_ty), mask=is_value & is_dim)
        tl.store(v_pages + page_at + HALF, turned_second.to(v_pages.dtype.element_ty), mask=is_value & is_dim)
