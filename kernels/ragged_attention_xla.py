"""Ragged paged attention in plain jax.numpy: what a CPU runs, and what every other implementation must agree with.

One online-softmax loop (`_attend`, after Milakov and Gimelshein's running maximum, arXiv:1805.02867) serves both kinds of work:

- decode rows: sorted by length, a few to a block, so that a block's rows end together and a long row makes few others wait;
- chunk rows: one row at a time, a block of its queries at a time.

A block walks over tiles of its own pages only, from the first page it sees to the last: nothing here is as long as a block table, and memory does not
grow with it. Trip counts are dynamic and shapes are fixed, so a layer costs the compiler a few small loops, whatever the lengths.

Knows nothing of meshes: over several devices call it inside `shard_map`, each device with its own heads. The sizes below were chosen by measurement,
and docs/decisions/011-xla-attention.md has it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sarathi_jax.kernels.layer_kv import LayerKV

DECODE_ROWS = 8  # decode rows that walk over their KV together
DECODE_KV_TILE = 128  # tokens of each that one iteration takes
QUERY_TILE = 64  # queries of a chunk that walk over its KV together
CHUNK_KV_TILE = 64  # tokens that one iteration takes

_NOTHING_SEEN = -1e30  # a running maximum below any score; finite, so that subtracting it is never inf - inf


class _Step(NamedTuple):
    """The arguments of one call, with KV by page."""

    queries: jax.Array  # f32[T, H, D], scaled
    k_pages: jax.Array  # [P, B * K * D]
    v_pages: jax.Array  # [P, B * K * D]
    k_scales: jax.Array | None  # f32[P, B * K]
    v_scales: jax.Array | None  # f32[P, B * K]
    kv_lens: jax.Array  # i32[S]
    block_tables: jax.Array  # i32[S, N]
    cu_q_lens: jax.Array  # i32[S + 1]
    num_decode_rows: jax.Array  # i32[]
    num_kv_heads: int
    page_size: int
    window: int | None
    soft_cap: float | None


class _Block(NamedTuple):
    """W rows that walk over their KV together, M queries each: query m of row w stands at position q_starts[w] + m."""

    queries: jax.Array  # f32[W, M, H, D], scaled
    block_tables: jax.Array  # i32[W, N]
    q_starts: jax.Array  # i32[W]
    kv_lens: jax.Array  # i32[W]; 0: the row sees nothing, and its output is 0


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
) -> jax.Array:
    """Causal attention of a step's tokens over their own requests' pages, where this step's KV has been written already.

    Row s owns tokens cu_q_lens[s] .. cu_q_lens[s + 1] - 1, the last of its kv_lens[s]; the query at position p sees positions max(0, p - window + 1) .. p.

    Args:
      q: [T, H, D]. Tokens past cu_q_lens[-1] may hold anything.
      kv: [P * B, K, D] keys and values, H a multiple of K; head h reads KV head h // (H / K). Slots that hold no token of a row may hold anything.
      kv_lens: i32[S], this step's tokens included; 0 for padding rows, which stand last.
      block_tables: i32[S, N] page ids. Entries past a row's pages, or of pages wholly before its window, may hold anything.
      cu_q_lens: i32[S + 1], constant over padding rows.
      num_decode_rows: i32[], how many leading rows are decodes, one token each. Counting fewer than there are is slower, not wrong.
      page_size: B.
      scale: multiplies q . k.
      window: tokens a query sees, itself included; None: all.
      soft_cap: scores become soft_cap * tanh(score / soft_cap); None: they stay.
      is_decode_only: every row that is not padding is one of num_decode_rows; the program then has no code for chunks.

    Returns: [T, H, D] of q's dtype, computed in float32; padding tokens may hold anything.
    """
    num_slots, num_kv_heads, _ = kv.k.shape
    k_pages, v_pages, *scales = (array.reshape(num_slots // page_size, -1) for array in kv.arrays)
    step = _Step(
        queries=q.astype(jnp.float32) * jnp.float32(scale),
        k_pages=k_pages,
        v_pages=v_pages,
        k_scales=scales[0] if scales else None,
        v_scales=scales[1] if scales else None,
        kv_lens=kv_lens,
        block_tables=block_tables,
        cu_q_lens=cu_q_lens,
        num_decode_rows=num_decode_rows,
        num_kv_heads=num_kv_heads,
        page_size=page_size,
        window=window,
        soft_cap=soft_cap,
    )
    out = _decode_rows(step)
    if not is_decode_only:
        out = _chunk_rows(step, out)
    return out.astype(q.dtype)


def _decode_rows(step: _Step) -> jax.Array:
    """f32[T, H, D]: each decode row's output at its token, which has the row's number; zeros elsewhere."""
    num_tokens = step.queries.shape[0]
    num_rows = min(num_tokens, step.kv_lens.shape[0])
    width = min(DECODE_ROWS, num_rows)
    lens = jnp.where(jnp.arange(num_rows) < step.num_decode_rows, step.kv_lens[:num_rows], 0)
    num_seen = lens if step.window is None else jnp.minimum(lens, step.window)
    # Filled up with a row past the end: what is read there is clipped and then unused, what is written is dropped.
    order = jnp.pad(jnp.argsort(-num_seen), (0, -num_rows % width), constant_values=num_tokens)

    def attend_block(i: jax.Array, out: jax.Array) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(order, i * width, width)
        block_lens = lens.at[rows].get(mode="fill", fill_value=0)
        queries = step.queries.at[rows].get(mode="clip")[:, None]  # [W, 1, H, D]
        block = _Block(queries, step.block_tables.at[rows].get(mode="clip"), block_lens - 1, block_lens)
        return out.at[rows].set(_attend(block, step)[:, 0], mode="drop")

    num_blocks = (jnp.sum(lens > 0, dtype=jnp.int32) + width - 1) // width
    return lax.fori_loop(0, num_blocks, attend_block, jnp.zeros_like(step.queries))


def _chunk_rows(step: _Step, out: jax.Array) -> jax.Array:
    """`out` with the tokens of every row from num_decode_rows on filled in.

    A row's last block reaches past the row's tokens and writes zeros there; rows are taken in order, so the next row overwrites them.
    """
    num_tokens = step.queries.shape[0]
    width = min(QUERY_TILE, num_tokens)
    padding = ((0, width), (0, 0), (0, 0))
    out, queries = jnp.pad(out, padding), jnp.pad(step.queries, padding)

    def attend_row(row: jax.Array, out: jax.Array) -> jax.Array:
        first, kv_len = step.cu_q_lens[row], step.kv_lens[row]
        q_len = step.cu_q_lens[row + 1] - first
        table = lax.dynamic_slice_in_dim(step.block_tables, row, 1)  # i32[1, N]

        def attend_block(i: jax.Array, out: jax.Array) -> jax.Array:
            token, num_left = first + i * width, q_len - i * width
            q_start = kv_len - num_left
            end = jnp.minimum(kv_len, q_start + width)
            block = _Block(lax.dynamic_slice_in_dim(queries, token, width)[None], table, q_start[None], end[None])
            is_own = (jnp.arange(width) < num_left)[:, None, None]
            attended = jnp.where(is_own, _attend(block, step)[0], 0)  # [M, H, D]
            return lax.dynamic_update_slice_in_dim(out, attended, token, 0)

        return lax.fori_loop(0, (q_len + width - 1) // width, attend_block, out)

    num_rows = jnp.sum(step.kv_lens > 0, dtype=jnp.int32)
    return lax.fori_loop(step.num_decode_rows, num_rows, attend_row, out)[:num_tokens]


def _attend(block: _Block, step: _Step) -> jax.Array:
    """f32[W, M, H, D]: a block's queries over the tokens they see, one tile of KV of all W rows at a time.

    Scores are one batched product of queries [rows, depth] and keys [C, depth]. Of a chunk, the batch is (W, K) and rows are (M, G). Of decodes, a
    product that small costs more to start than to compute, and moving heads outwards in the tile costs more still: there the layout is wide. The
    batch is W, rows are (K, M, G), depth is (K, D), and each query is zero outside its own KV head.
    """
    num_rows, num_queries, num_heads, head_dim = block.queries.shape
    by_head = (num_rows, step.num_kv_heads, num_queries, num_heads // step.num_kv_heads)
    is_wide = num_queries == 1
    queries = _fold_queries(block.queries, step.num_kv_heads, is_wide)
    pages_per_tile = max(1, (DECODE_KV_TILE if is_wide else CHUNK_KV_TILE) // step.page_size)
    tile_shape = (num_rows, pages_per_tile * step.page_size, step.num_kv_heads, head_dim)
    first_seen = jnp.zeros_like(block.q_starts)
    if step.window is not None:
        first_seen = jnp.maximum(block.q_starts - step.window + 1, 0)
    first_page = first_seen // step.page_size
    num_pages = (block.kv_lens + step.page_size - 1) // step.page_size - first_page
    num_tiles = jnp.max((num_pages + pages_per_tile - 1) // pages_per_tile)

    def take_tile(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        highest, total, weighted = state
        columns = (first_page + i * pages_per_tile)[:, None] + jnp.arange(pages_per_tile)[None]
        pages = jnp.take_along_axis(block.block_tables, columns, axis=1, mode="clip")
        positions = (first_page + i * pages_per_tile)[:, None] * step.page_size + jnp.arange(tile_shape[1])[None]
        keys = _gather(step.k_pages, step.k_scales, pages, tile_shape)
        values = _gather(step.v_pages, step.v_scales, pages, tile_shape)
        # A weight of 0 does not silence a NaN: what stands past a row's last token is replaced.
        is_held = positions < block.kv_lens[:, None]  # [W, C]
        values = jnp.where(is_held[..., None, None], values, 0)

        scores = _product("brd,bcd->brc", queries, _fold_tile(keys, is_wide))
        if step.soft_cap is not None:
            scores = step.soft_cap * jnp.tanh(scores / step.soft_cap)
        is_seen = is_held[:, None] & _is_in_reach(positions, block.q_starts, num_queries, step.window)  # [W, M, C]
        by_query = scores.reshape(*by_head, -1)  # [W, K, M, G, C]
        scores = jnp.where(is_seen[:, None, :, None], by_query, -jnp.inf).reshape(scores.shape)

        new_highest = jnp.maximum(highest, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_highest[..., None])
        fade = jnp.exp(highest - new_highest)
        weighted = weighted * fade[..., None] + _product("brc,bcd->brd", weights, _fold_tile(values, is_wide))
        return new_highest, total * fade + jnp.sum(weights, axis=-1), weighted

    rows = queries.shape[:2]
    start = (jnp.full(rows, _NOTHING_SEEN, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros_like(queries))
    _, total, weighted = lax.fori_loop(0, num_tiles, take_tile, start)
    attended = weighted / jnp.where(total == 0, 1, total)[..., None]
    return _unfold(attended, by_head, is_wide)


def _gather(pages: jax.Array, scales: jax.Array | None, ids: jax.Array, tile_shape: tuple[int, ...]) -> jax.Array:
    """[W, C, K, D]: the tokens of these pages i32[W, pages a tile]."""
    tile = pages.at[ids].get(mode="clip").reshape(tile_shape)
    if scales is None:
        return tile
    return tile.astype(jnp.float32) * scales.at[ids].get(mode="clip").reshape(*tile_shape[:-1], 1)


def _is_in_reach(positions: jax.Array, q_starts: jax.Array, num_queries: int, window: int | None) -> jax.Array:
    """bool[W, M, C]: which tokens stand neither after a query nor before its window."""
    queries = (q_starts[:, None] + jnp.arange(num_queries)[None])[:, :, None]
    keys = positions[:, None]
    return keys <= queries if window is None else (keys <= queries) & (keys > queries - window)


def _product(letters: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(letters, left, right, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _fold_queries(queries: jax.Array, num_kv_heads: int, is_wide: bool) -> jax.Array:
    """[W, M, H, D] -> [W * K, M * G, D], or wide: [W, K * M * G, K * D]."""
    num_rows, num_queries, num_heads, head_dim = queries.shape
    group = num_heads // num_kv_heads
    by_head = queries.reshape(num_rows, num_queries, num_kv_heads, group, head_dim).transpose(0, 2, 1, 3, 4)
    if not is_wide:
        return by_head.reshape(num_rows * num_kv_heads, num_queries * group, head_dim)
    is_own = jnp.eye(num_kv_heads, dtype=bool)[None, :, None, None, :, None]
    spread = jnp.where(is_own, by_head[:, :, :, :, None], 0)  # [W, K, M, G, K, D]
    return spread.reshape(num_rows, num_heads * num_queries, num_kv_heads * head_dim)


def _fold_tile(tile: jax.Array, is_wide: bool) -> jax.Array:
    """[W, C, K, D] -> f32[W * K, C, D], or wide: f32[W, C, K * D]."""
    num_rows, num_tokens, num_kv_heads, head_dim = tile.shape
    tile = tile.astype(jnp.float32)
    if is_wide:
        return tile.reshape(num_rows, num_tokens, num_kv_heads * head_dim)
    return tile.transpose(0, 2, 1, 3).reshape(num_rows * num_kv_heads, num_tokens, head_dim)


def _unfold(attended: jax.Array, by_head: tuple[int, int, int, int], is_wide: bool) -> jax.Array:
    """`_fold_queries` undone: [W, M, H, D]."""
    num_rows, num_kv_heads, num_queries, group = by_head
    if is_wide:
        spread = attended.reshape(*by_head, num_kv_heads, -1)  # [W, K, M, G, K, D]
        attended = jnp.stack([spread[:, head, :, :, head] for head in range(num_kv_heads)], axis=1)
    attended = attended.reshape(*by_head, -1).transpose(0, 2, 1, 3, 4)  # [W, M, K, G, D]
    return attended.reshape(num_rows, num_queries, num_kv_heads * group, attended.shape[-1])
