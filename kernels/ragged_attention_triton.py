"""Ragged paged attention on a GPU: how many programs a step's attention takes, in tiles of which sizes, and the two launches that make it up.

Everything here is decided from shapes, when a program is traced; the device code is in `ragged_attention_kernel`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import triton

from sarathi_jax.kernels import ragged_attention_kernel as device_code
from sarathi_jax.kernels.block_sizes import MIN_DOT, BlockSizes, choose_sizes, kind_of
from sarathi_jax.kernels.gpu import GpuTarget
from sarathi_jax.kernels.layer_kv import LayerKV
from sarathi_jax.kernels.triton_launch import KernelCall

MIN_TILES = 4  # a span of fewer tiles is not worth a program of its own
# Items for each multiprocessor, over all KV heads, that cutting decode rows may add, in a decode-only launch and in a mixed one. Of decodes alone three
# programs run at a time: this makes four rounds, so that the last one, which is not full, is short.
DECODE_ITEMS, MIXED_DECODE_ITEMS = 12, 4
MIXED_PROGRAMS = 4  # for each multiprocessor, that a mixed launch has at most: with more items, each takes several
CHUNK_ITEMS = 1  # for each multiprocessor, over all KV heads, that chunks should have at least; where they have far fewer, they are cut
MIN_ROWS_PAD = 128  # rows that programs look at, at least: buckets of fewer rows share their compiled kernel
SPANS_TILE = 16  # spans that the merge takes at a time


class AttentionShape(NamedTuple):
    """What the launches of one use depend on. Letters as in docs/shapes.md; window and soft_cap as for the operation."""

    num_tokens: int  # T
    num_rows: int  # S
    blocks_per_row: int  # N
    num_heads: int  # H, of one device
    num_kv_heads: int  # K, of one device
    head_dim: int  # D
    page_size: int  # B
    scale: float
    window: int | None
    soft_cap: float | None
    is_quantized: bool
    is_decode_only: bool

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads


class AttentionLaunches(NamedTuple):
    """attend: all items of the step, and how many of each kind there can be. merge: None if no row can be cut."""

    attend: KernelCall
    merge: KernelCall | None
    num_decode_items: int
    num_chunk_items: int


def ragged_paged_attention(
    q: jax.Array,
    kv: LayerKV,
    kv_lens: jax.Array,
    block_tables: jax.Array,
    cu_q_lens: jax.Array,
    num_decode_rows: jax.Array,
    *,
    page_size: int,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    is_decode_only: bool,
    target: GpuTarget,
    sizes: BlockSizes | None = None,
) -> jax.Array:
    """As `ragged_attention_xla.ragged_paged_attention`, in q's precision but for sums and softmax, which are float32.

    Args:
      target: the GPU to choose sizes for.
      sizes: of tiles; None: the table's.
    """
    shape = AttentionShape(
        num_tokens=q.shape[0],
        num_rows=block_tables.shape[0],
        blocks_per_row=block_tables.shape[1],
        num_heads=q.shape[1],
        num_kv_heads=kv.k.shape[1],
        head_dim=q.shape[2],
        page_size=page_size,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        is_quantized=kv.is_quantized,
        is_decode_only=is_decode_only,
    )
    if sizes is None:
        kind = kind_of(q.dtype, kv.k.dtype, is_decode_only=is_decode_only)
        sizes = choose_sizes(target.sm, shape.head_dim, shape.group, kind)
    launches = plan_launches(shape, sizes, target)
    scales = kv.arrays[-2:]  # or, where there are none, pointers that are never followed
    rows = kv_lens, cu_q_lens, num_decode_rows
    arrays = q, kv.k, kv.v, *scales, kv_lens, block_tables, cu_q_lens, num_decode_rows
    out, *partials = launches.attend(inputs=arrays, outputs=output_shapes(shape, launches, q.dtype))
    if launches.merge is not None:
        (out,) = launches.merge(in_place=(out,), inputs=(*partials, *rows))
    return out


def plan_launches(shape: AttentionShape, sizes: BlockSizes, target: GpuTarget) -> AttentionLaunches:
    """Grids and constants of a use's launches."""
    decode_m = max(MIN_DOT, triton.next_power_of_2(shape.group))
    chunk_m = max(sizes.chunk_m, decode_m)
    has_chunks, max_rows = not shape.is_decode_only, min(shape.num_rows, shape.num_tokens)
    num_whole_blocks = shape.num_tokens // (
        chunk_m // shape.group
    )  # and each chunk row may end in one that is not whole
    decode_extra, chunk_extra = 0, 0
    if shape.blocks_per_row * shape.page_size >= 2 * MIN_TILES * sizes.decode_tile:
        each = DECODE_ITEMS if shape.is_decode_only else MIXED_DECODE_ITEMS
        decode_extra = triton.cdiv(each * target.num_multiprocessors, shape.num_kv_heads)
        wanted = triton.cdiv(CHUNK_ITEMS * target.num_multiprocessors, shape.num_kv_heads)
        natural = shape.num_tokens * shape.group // chunk_m
        chunk_extra = wanted - natural if has_chunks and natural < wanted * 3 // 4 else 0
    num_decode_items = max_rows + decode_extra
    num_chunk_items = max_rows + num_whole_blocks + chunk_extra if has_chunks else 0
    max_items = num_decode_items
    if has_chunks:  # a row is a decode or has chunks, so that rows count once
        max_items += num_whole_blocks + chunk_extra
    most = (
        max_items
        if shape.is_decode_only
        else triton.cdiv(MIXED_PROGRAMS * target.num_multiprocessors, shape.num_kv_heads)
    )
    num_programs = min(max_items, most)
    common: dict[str, int | float | bool] = {
        "ROWS_PAD": max(triton.next_power_of_2(shape.num_rows), MIN_ROWS_PAD),
        "NUM_KV_HEADS": shape.num_kv_heads,
        "GROUP": shape.group,
        "HEAD_DIM": shape.head_dim,
        "HEAD_PAD": max(triton.next_power_of_2(shape.head_dim), MIN_DOT),
        "WINDOW": shape.window or 0,
        "HAS_CHUNKS": has_chunks,
        "DECODE_TILE": sizes.decode_tile,
        "IS_DECODE_CUT": decode_extra > 0,
        "CHUNK_M": chunk_m,
        "CHUNK_TILE": sizes.chunk_tile,
        "IS_CHUNK_CUT": chunk_extra > 0,
        "MIN_TILES": MIN_TILES,
    }
    attend_constants = common | {
        "BLOCKS_PER_ROW": shape.blocks_per_row,
        "PAGE_SIZE": shape.page_size,
        "SCALE": shape.scale,
        "SOFT_CAP": shape.soft_cap or 0.0,
        "HAS_SCALES": shape.is_quantized,
        "DECODE_M": decode_m,
    }
    scalars = {"num_rows": shape.num_rows, "decode_extra": decode_extra, "chunk_extra": chunk_extra}
    attend = KernelCall(
        device_code.attend_kernel,
        num_programs * shape.num_kv_heads,
        attend_constants,
        sizes.num_warps,
        sizes.num_stages,
        target,
        scalars | {"num_programs": num_programs},
    )
    merge = None
    if decode_extra or chunk_extra:
        num_merged = shape.num_tokens if chunk_extra else max_rows
        constants = common | {"SPANS_TILE": SPANS_TILE}
        merge = KernelCall(device_code.merge_kernel, num_merged * shape.num_heads, constants, 4, 2, target, scalars)
    return AttentionLaunches(attend, merge, num_decode_items, num_chunk_items)


def output_shapes(
    shape: AttentionShape, launches: AttentionLaunches, dtype: jnp.dtype
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The attention's output and its scratch: sums, and maxima with weights, of decode and of chunk items that may be cut."""
    constants = launches.attend.constants
    decode_items = launches.num_decode_items if constants["IS_DECODE_CUT"] else 1
    chunk_items = launches.num_chunk_items if constants["IS_CHUNK_CUT"] else 1
    chunk_rows = (
        (chunk_items, shape.num_kv_heads, int(constants["CHUNK_M"])) if constants["IS_CHUNK_CUT"] else (1, 1, 1)
    )
    scratch = [(decode_items, shape.num_heads), chunk_rows]
    arrays = [((*rows, size), jnp.float32) for rows in scratch for size in (shape.head_dim, 2)]
    out = ((shape.num_tokens, shape.num_heads, shape.head_dim), dtype)
    return tuple(jax.ShapeDtypeStruct(*array) for array in [out, *arrays])
