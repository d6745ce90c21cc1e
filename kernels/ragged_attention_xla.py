"""Ragged paged attention in plain jax.numpy: what a CPU runs, and what every other implementation must agree with.

One online-softmax loop (`_attend`, after Milakov and Gimelshein's running maximum) serves both kinds of work:

- decode rows: sorted by length, eight to a block, so that a block's rows end together and a long row makes at most seven others wait;
- chunk rows: one row at a time, a block of queries at a time.

A block walks over tiles of its own pages only, from its first visible page to its last: nothing here is as long as a block table, and memory does
not grow with it. Trip counts are dynamic, shapes are fixed, and every layer of a program costs the compiler a few small loops.

Knows nothing of meshes: over several devices call it inside `shard_map`, each device with its own heads. Constants were chosen by measurement
(docs/decisions/011-xla-attention.md).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

DECODE_ROWS = 8  # decode rows that share one pass over KV tiles
QUERY_TILE = 64  # queries of a chunk that share one
KV_TILE = 256  # tokens of a KV tile, at most
KV_TILE_NUMBERS = 1 << 18  # numbers in a KV tile of a whole block: K and V tiles together stay inside a core's cache

_NOTHING_SEEN = -1e30  # a running maximum below any score; finite, so that subtracting it is never inf - inf


class _Settings(NamedTuple):
    """What is fixed when the program is compiled."""

    page_size: int
    scale: float
    window: int | None
    soft_cap: float | None


class _Cache(NamedTuple):
    """One layer's KV, by page: [P, B * K * D] each."""

    k: jax.Array
    v: jax.Array


class _Block(NamedTuple):
    """W rows that walk over their KV together, M queries each; query m of row w stands at position q_starts[w] + m."""

    queries: jax.Array  # f32[W, M, H, D], scaled
    block_tables: jax.Array  # i32[W, N]
    q_starts: jax.Array  # i32[W]
    kv_lens: jax.Array  # i32[W]; 0: the row sees nothing, and its output is 0


def ragged_paged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
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
    """Causal attention of a step's tokens over their own requests' pages, this step's KV already written there.

    Row s owns tokens cu_q_lens[s] .. cu_q_lens[s + 1] - 1, the last ones of its kv_lens[s] tokens; a query at position p sees max(0, p - window + 1) .. p.

    Args:
      q: [T, H, D]. Tokens past cu_q_lens[-1] may hold anything.
      k_pages, v_pages: [P * B, K, D], H a multiple of K; head h reads KV head h // (H / K). Slots that hold no token of a row may hold anything.
      kv_lens: i32[S], this step's tokens included; 0 for padding rows, which stand last.
      block_tables: i32[S, N] page ids. Entries past a row's pages, or before its window, may hold anything.
      cu_q_lens: i32[S + 1], constant over padding rows.
      num_decode_rows: i32[], how many leading rows hold exactly one token each. Fewer than there are is slower, never wrong.
      page_size: B.
      scale: multiplies q . k.
      window: tokens a query sees, itself included; None: all.
      soft_cap: scores become soft_cap * tanh(score / soft_cap); None: unchanged.
      is_decode_only: every row that is not padding is a decode row; the program then has no code for chunks.

    Returns: [T, H, D] of q's dtype, computed in float32; zeros for padding tokens.
    """
    num_slots, num_kv_heads, head_dim = k_pages.shape
    by_page = (num_slots // page_size, page_size * num_kv_heads * head_dim)
    cache = _Cache(k_pages.reshape(by_page), v_pages.reshape(by_page))
    settings = _Settings(page_size, scale, window, soft_cap)
    queries = q.astype(jnp.float32) * jnp.float32(scale)
    out = _decode_rows(queries, cache, kv_lens, block_tables, num_decode_rows, settings, num_kv_heads)
    if not is_decode_only:
        out = _chunk_rows(
            out, queries, cache, kv_lens, block_tables, cu_q_lens, num_decode_rows, settings, num_kv_heads
        )
    return out.astype(q.dtype)


def _decode_rows(
    queries: jax.Array,
    cache: _Cache,
    kv_lens: jax.Array,
    block_tables: jax.Array,
    num_decode_rows: jax.Array,
    settings: _Settings,
    num_kv_heads: int,
) -> jax.Array:
    """f32[T, H, D]: row s's output at token s, for the decode rows; zeros elsewhere."""
    num_tokens, num_rows = queries.shape[0], min(queries.shape[0], kv_lens.shape[0])
    width = min(DECODE_ROWS, num_rows)
    lens = jnp.where(jnp.arange(num_rows) < num_decode_rows, kv_lens[:num_rows], 0)
    num_visible = lens if settings.window is None else jnp.minimum(lens, settings.window)
    order = jnp.argsort(num_visible, descending=True)
    order = jnp.pad(
        order, (0, -num_rows % width), constant_values=num_tokens
    )  # past the end: reads are clipped, writes dropped

    def attend_block(i: jax.Array, out: jax.Array) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(order, i * width, width)
        block_lens = lens.at[rows].get(mode="fill", fill_value=0)
        tables = block_tables.at[rows].get(mode="clip")
        block = _Block(queries.at[rows].get(mode="clip")[:, None], tables, block_lens - 1, block_lens)
        return out.at[rows].set(_attend(block, cache, settings, num_kv_heads)[:, 0], mode="drop")

    num_blocks = (jnp.sum(lens > 0, dtype=jnp.int32) + width - 1) // width
    return lax.fori_loop(0, num_blocks, attend_block, jnp.zeros_like(queries))


def _chunk_rows(
    out: jax.Array,
    queries: jax.Array,
    cache: _Cache,
    kv_lens: jax.Array,
    block_tables: jax.Array,
    cu_q_lens: jax.Array,
    num_decode_rows: jax.Array,
    settings: _Settings,
    num_kv_heads: int,
) -> jax.Array:
    """`out` with the tokens of all rows from num_decode_rows on filled in.

    A row's last block reaches past its tokens and writes zeros there: rows are taken in order, so the next one overwrites them.
    """
    num_tokens = queries.shape[0]
    width = min(QUERY_TILE, num_tokens)
    padding = ((0, width), (0, 0), (0, 0))
    out, queries = jnp.pad(out, padding), jnp.pad(queries, padding)

    def attend_row(row: jax.Array, out: jax.Array) -> jax.Array:
        first, q_len, kv_len = cu_q_lens[row], cu_q_lens[row + 1] - cu_q_lens[row], kv_lens[row]
        table = lax.dynamic_slice_in_dim(block_tables, row, 1)  # i32[1, N]

        def attend_block(i: jax.Array, out: jax.Array) -> jax.Array:
            num_left = q_len - i * width
            q_start = kv_len - num_left
            end = jnp.minimum(kv_len, q_start + width)
            tile = lax.dynamic_slice_in_dim(queries, first + i * width, width)
            block = _Block(tile[None], table, q_start[None], end[None])
            is_own = (jnp.arange(width) < num_left)[:, None, None]
            attended = jnp.where(is_own, _attend(block, cache, settings, num_kv_heads)[0], 0)
            return lax.dynamic_update_slice_in_dim(out, attended, first + i * width, 0)

        return lax.fori_loop(0, (q_len + width - 1) // width, attend_block, out)

    num_rows = jnp.sum(kv_lens > 0, dtype=jnp.int32)
    return lax.fori_loop(num_decode_rows, num_rows, attend_row, out)[:num_tokens]


def _attend(block: _Block, cache: _Cache, settings: _Settings, num_kv_heads: int) -> jax.Array:
    """f32[W, M, H, D]: every query of a block over its visible tokens, one KV tile of all W rows at a time.

    Scores are one batched product of [rows, depth] and [C, depth]. For chunks the batch is (W, K) and rows are (M, G). For decodes a product that
    small costs more to start than to compute, and reordering the tile costs more still: the batch is W, rows are (K, M, G), depth is (K, D), and
    queries are zero outside their own KV head.
    """
    num_rows, num_queries, num_heads, head_dim = block.queries.shape
    by_head = (num_rows, num_kv_heads, num_queries, num_heads // num_kv_heads)
    is_wide = num_queries == 1
    tile_tokens = _tile_tokens(num_rows * num_kv_heads * head_dim, settings.page_size)
    queries = _fold_queries(block.queries, num_kv_heads, is_wide)
    pages_per_tile = tile_tokens // settings.page_size
    window = settings.window
    first_seen = jnp.zeros_like(block.q_starts) if window is None else jnp.maximum(block.q_starts - window + 1, 0)
    first_page = first_seen // settings.page_size
    num_tiles = jnp.max((block.kv_lens - first_page * settings.page_size + tile_tokens - 1) // tile_tokens)
    q_positions = block.q_starts[:, None] + jnp.arange(num_queries)[None]  # [W, M]

    def step(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        highest, total, weighted = state
        page = first_page + i * pages_per_tile
        positions = (page * settings.page_size)[:, None] + jnp.arange(tile_tokens)[None]  # [W, C]
        pages = jnp.take_along_axis(
            block.block_tables, page[:, None] + jnp.arange(pages_per_tile)[None], axis=1, mode="clip"
        )
        keys, values = (
            pool.at[pages].get(mode="clip").reshape(num_rows, tile_tokens, num_kv_heads, head_dim) for pool in cache
        )
        # A weight of 0 does not silence a NaN: values that no query of the block may see are replaced, not only weighted away.
        is_held = (positions >= first_seen[:, None]) & (positions < block.kv_lens[:, None])
        keys, values = _fold_tile(keys, is_wide), _fold_tile(jnp.where(is_held[..., None, None], values, 0), is_wide)
        scores = _batched_product("brd,bcd->brc", queries, keys)
        if settings.soft_cap is not None:
            scores = settings.soft_cap * jnp.tanh(scores / settings.soft_cap)
        is_seen = _is_seen(positions, q_positions, block.kv_lens, window)[:, None, :, None]  # [W, 1, M, 1, C]
        scores = jnp.where(is_seen, scores.reshape(*by_head, tile_tokens), -jnp.inf).reshape(scores.shape)
        new_highest = jnp.maximum(highest, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_highest[..., None])
        fade = jnp.exp(highest - new_highest)
        weighted = weighted * fade[..., None] + _batched_product("brc,bcd->brd", weights, values)
        return new_highest, total * fade + jnp.sum(weights, axis=-1), weighted

    rows = queries.shape[:2]
    start = (jnp.full(rows, _NOTHING_SEEN, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros_like(queries))
    _, total, weighted = lax.fori_loop(0, num_tiles, step, start)
    attended = weighted / jnp.where(total == 0, 1, total)[..., None]
    return _unfold(attended, by_head, head_dim, is_wide)


def _is_seen(positions: jax.Array, q_positions: jax.Array, kv_lens: jax.Array, window: int | None) -> jax.Array:
    """bool[W, M, C]: which of the tile's tokens each query attends to."""
    keys, queries = positions[:, None, :], q_positions[:, :, None]
    is_seen = (keys <= queries) & (keys < kv_lens[:, None, None])
    return is_seen if window is None else is_seen & (keys > queries - window)


def _tile_tokens(numbers_per_token: int, page_size: int) -> int:
    """Tokens of a KV tile: whole pages, a power of two of them, in cache when all rows of a block hold one."""
    limit = min(KV_TILE, max(64, KV_TILE_NUMBERS // numbers_per_token))
    return page_size * 2 ** int(math.log2(max(1, limit // page_size)))


def _batched_product(letters: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(letters, left, right, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _fold_queries(queries: jax.Array, num_kv_heads: int, is_wide: bool) -> jax.Array:
    """[W, M, H, D] -> [W * K, M * G, D], or wide: [W, K * M * G, K * D]."""
    num_rows, num_queries, num_heads, head_dim = queries.shape
    folded = num_queries * num_heads // num_kv_heads
    queries = queries.reshape(num_rows, num_queries, num_kv_heads, -1, head_dim)  # -1: G
    queries = queries.transpose(0, 2, 1, 3, 4).reshape(num_rows, num_kv_heads, folded, head_dim)
    if not is_wide:
        return queries.reshape(num_rows * num_kv_heads, folded, head_dim)
    own_head = jnp.eye(num_kv_heads, dtype=bool)[None, :, None, :, None]
    wide = jnp.where(own_head, queries[:, :, :, None, :], 0)  # [W, K, M * G, K, D]
    return wide.reshape(num_rows, num_kv_heads * folded, num_kv_heads * head_dim)


def _fold_tile(tile: jax.Array, is_wide: bool) -> jax.Array:
    """[W, C, K, D] -> f32[W * K, C, D], or wide: f32[W, C, K * D]."""
    num_rows, num_tokens, num_kv_heads, head_dim = tile.shape
    tile = tile.astype(jnp.float32)
    if is_wide:
        return tile.reshape(num_rows, num_tokens, num_kv_heads * head_dim)
    return tile.transpose(0, 2, 1, 3).reshape(num_rows * num_kv_heads, num_tokens, head_dim)


def _unfold(attended: jax.Array, by_head: tuple[int, int, int, int], head_dim: int, is_wide: bool) -> jax.Array:
    """`_fold_queries` undone: [W, M, H, D]."""
    num_rows, num_kv_heads, num_queries, group = by_head
    if is_wide:
        wide = attended.reshape(num_rows, num_kv_heads, num_queries * group, num_kv_heads, head_dim)
        attended = jnp.stack([wide[:, head, :, head] for head in range(num_kv_heads)], axis=1)
    attended = attended.reshape(*by_head, head_dim).transpose(0, 2, 1, 3, 4)
    return attended.reshape(num_rows, num_queries, num_kv_heads * group, head_dim)
