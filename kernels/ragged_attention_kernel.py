# Triton reads the source of these functions: its types are not Python's.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportPossiblyUnboundVariable=false
"""The device code of ragged paged attention, for Triton: one launch for any mix of chunks and decodes, and the merge of what was split.

A launch is a fixed number of programs, known from shapes alone. What each one does it finds out by itself, from the lengths: the work of a step is a
list of items, which the programs of a KV head share out among themselves. An item is a tile of queries over a span of its row's KV:

- decode row: one token's G query heads in a tile of DECODE_M rows; a row's KV is cut into spans;
- chunk row: BLOCK_Q tokens times G heads in a tile of CHUNK_M rows; KV is cut where a step has too few tiles of queries to fill the device.

The spans are as long as they have to be for the number of items to stay within its bound (`_spans`): a batch of equal rows is cut little, one long row among short
ones is cut a lot, and the sum never exceeds the bound. A row in one span is written where it belongs; of others each item leaves its unnormalized sum,
its running maximum and its weight, and `merge_kernel` puts them together (the split of Flash-Decoding, Dao et al. 2023; the online softmax of
Milakov and Gimelshein, arXiv:1805.02867). Chunk and decode items alternate, so that a multiprocessor's arithmetic and its loads are both at work
(POD-Attention, arXiv:2410.18038), and of the chunks those that see most come first.

Scores are in units of log2(e), so that weights are powers of two. Offsets into the pages are 64 bits wide.
"""

import triton
import triton.language as tl

# A running maximum below any score; finite, so that subtracting it is never inf - inf.
NOTHING_SEEN = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _spans(tiles, tiles_each, extra, IS_CUT: tl.constexpr, MIN_TILES: tl.constexpr):
    """How many spans each row's KV is cut into.

    tiles: i32[rows], tiles of KV that a tile of the row's queries sees at most. tiles_each: i32[rows], how many tiles of queries it has.
    The sum over rows of tiles_each * spans is at most `extra` more than the sum of tiles_each.
    """
    if not IS_CUT:
        return tl.minimum(tiles, 1)
    length = tl.maximum(tl.cdiv(tl.sum(tiles * tiles_each), extra), MIN_TILES)
    return tl.cdiv(tiles, length)


@triton.jit
def _decode_spans(
    kv_lens, is_decode, extra, WINDOW: tl.constexpr, TILE: tl.constexpr, IS_CUT: tl.constexpr, MIN: tl.constexpr,
):  # fmt: skip
    """i32[rows]: spans of each decode row, 0 for others."""
    first = tl.zeros_like(kv_lens)
    if WINDOW > 0:
        first = tl.maximum(kv_lens - WINDOW, 0) // TILE
    tiles = tl.where(is_decode, tl.cdiv(kv_lens, TILE) - first, 0)
    return _spans(tiles, tl.minimum(tiles, 1), extra, IS_CUT, MIN)


@triton.jit
def _chunk_spans(
    kv_lens, num_blocks, extra,
    WINDOW: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr, IS_CUT: tl.constexpr, MIN: tl.constexpr,
):  # fmt: skip
    """i32[rows]: spans of each tile of queries of a chunk row. num_blocks: how many of those it has, 0 for decode rows."""
    tiles = tl.cdiv(kv_lens, TILE)
    if WINDOW > 0:
        tiles = tl.minimum(tiles, (WINDOW + BLOCK_Q - 2) // TILE + 2)
    return _spans(tl.where(num_blocks > 0, tiles, 0), num_blocks, extra, IS_CUT, MIN)


@triton.jit
def _take_tiles(
    queries, q_positions, weighted, total, highest,
    k_pages, v_pages, k_scales, v_scales, table, first_seen, kv_len, kv_head, first_tile, end_tile,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, PAGE_SIZE: tl.constexpr, SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, HAS_SCALES: tl.constexpr, TILE: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Attend over tiles [first_tile, end_tile) of one row's KV, of tokens first_seen .. kv_len - 1. Unmasked, every query sees every token of the tiles.

    queries: [M, D]; q_positions: i32[M]; weighted: f32[M, D]; total, highest: f32[M].
    """
    dims = tl.arange(0, HEAD_PAD)
    is_dim = dims < HEAD_DIM
    # Page ids are read one tile ahead: keys and values would otherwise wait for them in every iteration.
    positions = first_tile * TILE + tl.arange(0, TILE)
    is_held = (positions >= first_seen) & (positions < kv_len)
    pages = tl.load(table + positions // PAGE_SIZE, mask=is_held, other=0)
    for tile in range(first_tile, end_tile):
        positions = tile * TILE + tl.arange(0, TILE)
        is_held = (positions >= first_seen) & (positions < kv_len)
        slots = pages.to(tl.int64) * PAGE_SIZE + positions % PAGE_SIZE
        pages = tl.load(table + (positions + TILE) // PAGE_SIZE, mask=positions + TILE < kv_len, other=0)
        rows = slots * NUM_KV_HEADS + kv_head
        k_at = k_pages + rows[None, :] * HEAD_DIM + dims[:, None]
        v_at = v_pages + rows[:, None] * HEAD_DIM + dims[None, :]
        if IS_MASKED:
            keys = tl.load(k_at, mask=is_held[None, :] & is_dim[:, None], other=0)
            values = tl.load(v_at, mask=is_held[:, None] & is_dim[None, :], other=0)
        elif HEAD_PAD == HEAD_DIM:
            keys = tl.load(k_at)
            values = tl.load(v_at)
        else:
            keys = tl.load(k_at, mask=is_dim[:, None], other=0)
            values = tl.load(v_at, mask=is_dim[None, :], other=0)

        scores = tl.dot(queries, keys.to(queries.dtype), input_precision="ieee")  # f32[M, TILE]
        if HAS_SCALES:
            scores *= tl.load(k_scales + rows, mask=is_held, other=0)[None, :]
        if SOFT_CAP > 0:
            # tanh(x) = 2 sigmoid(2 x) - 1
            scores = (2 * tl.sigmoid(scores * (2 * SCALE / SOFT_CAP)) - 1) * (SOFT_CAP * LOG2_E)
        else:
            scores *= SCALE * LOG2_E
        if IS_MASKED:
            is_seen = is_held[None, :] & (positions[None, :] <= q_positions[:, None])
            if WINDOW > 0:
                is_seen = is_seen & (positions[None, :] > q_positions[:, None] - WINDOW)
            scores = tl.where(is_seen, scores, float("-inf"))

        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        fade = tl.exp2(highest - new_highest)
        total = total * fade + tl.sum(weights, 1)
        if HAS_SCALES:
            weights *= tl.load(v_scales + rows, mask=is_held, other=0)[None, :]
        weighted = weighted * fade[:, None]
        weighted = tl.dot(weights.to(queries.dtype), values.to(queries.dtype), weighted, input_precision="ieee")
        highest = new_highest
    return weighted, total, highest


@triton.jit
def _store(
    weighted, total, highest, out_at, partial_at, stats_at, is_stored, is_whole, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr,
):  # fmt: skip
    """Write a tile of queries where it belongs, or what it saw of its span for the merge.

    out_at, partial_at, stats_at: pointers [M] to the first number of each query. is_stored: bool[M].
    """
    dims = tl.arange(0, HEAD_PAD)
    mask = is_stored[:, None] & (dims < HEAD_DIM)[None, :]
    if is_whole:
        result = weighted / tl.where(total == 0, 1, total)[:, None]  # a query that is not there has seen nothing
        tl.store(out_at[:, None] + dims[None, :], result.to(out_at.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_at[:, None] + dims[None, :], weighted, mask=mask)
        tl.store(stats_at, highest, mask=is_stored)
        tl.store(stats_at + 1, total, mask=is_stored)


@triton.jit
def _find_row(item, items, spans):
    """The row of an item, its number among that row's, and that row's spans. items, spans: i32[rows]."""
    rows = tl.arange(0, items.shape[0])
    row = tl.sum((tl.cumsum(items) <= item).to(tl.int32))
    return row, item - tl.sum(tl.where(rows < row, items, 0)), tl.sum(tl.where(rows == row, spans, 0))


@triton.jit
def _chunk_item(
    item, num_blocks, chunk_spans, kv_head,
    q, k_pages, v_pages, k_scales, v_scales, kv_lens, block_tables, cu_q_lens, out, partials, stats,
    BLOCKS_PER_ROW: tl.constexpr, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, HAS_SCALES: tl.constexpr,
    M: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One span of one tile of queries of a chunk row: query m is of token m // GROUP of the tile, and of head m % GROUP of the KV head's group.

    num_blocks, chunk_spans: i32[rows], tiles of queries of each row, and spans of each of them.
    """
    BLOCK_Q: tl.constexpr = M // GROUP
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    row, index, spans = _find_row(item, num_blocks * chunk_spans, chunk_spans)
    block, span = index // spans, index % spans
    kv_len, start = tl.load(kv_lens + row), tl.load(cu_q_lens + row)
    q_len = tl.load(cu_q_lens + row + 1) - start
    query, dims = tl.arange(0, M), tl.arange(0, HEAD_PAD)
    token = block * BLOCK_Q + query // GROUP
    is_query = (query < BLOCK_Q * GROUP) & (token < q_len)
    head_row = (start + token) * NUM_HEADS + kv_head * GROUP + query % GROUP
    q_mask = is_query[:, None] & (dims < HEAD_DIM)[None, :]
    queries = tl.load(q + head_row[:, None] * HEAD_DIM + dims[None, :], mask=q_mask, other=0)
    first_position = kv_len - q_len + block * BLOCK_Q
    positions = kv_len - q_len + token

    first_seen = 0
    if WINDOW > 0:
        first_seen = tl.maximum(first_position - WINDOW + 1, 0)
    first_tile, end_tile = first_seen // TILE, tl.cdiv(tl.minimum(first_position + BLOCK_Q, kv_len), TILE)
    length = tl.cdiv(end_tile - first_tile, spans)
    first_tile += span * length
    end_tile = tl.minimum(end_tile, first_tile + length)
    weighted = tl.zeros((M, HEAD_PAD), tl.float32)
    total, highest = tl.zeros((M,), tl.float32), tl.full((M,), NOTHING_SEEN, tl.float32)
    table = block_tables + row * BLOCKS_PER_ROW
    if WINDOW == 0:
        # What stands wholly at or before the first query is seen by all of them.
        whole = tl.maximum(tl.minimum(end_tile, (first_position + 1) // TILE), first_tile)
        weighted, total, highest = _take_tiles(
            queries, positions, weighted, total, highest,
            k_pages, v_pages, k_scales, v_scales, table, first_seen, kv_len, kv_head, first_tile, whole,
            NUM_KV_HEADS, HEAD_DIM, HEAD_PAD, PAGE_SIZE, SCALE, SOFT_CAP, WINDOW, HAS_SCALES, TILE, False,
        )  # fmt: skip
        first_tile = whole
    weighted, total, highest = _take_tiles(
        queries, positions, weighted, total, highest,
        k_pages, v_pages, k_scales, v_scales, table, first_seen, kv_len, kv_head, first_tile, end_tile,
        NUM_KV_HEADS, HEAD_DIM, HEAD_PAD, PAGE_SIZE, SCALE, SOFT_CAP, WINDOW, HAS_SCALES, TILE, True,
    )  # fmt: skip
    partial_row = (item * NUM_KV_HEADS + kv_head) * M + query
    _store(
        weighted, total, highest, out + head_row * HEAD_DIM, partials + partial_row.to(tl.int64) * HEAD_DIM,
        stats + partial_row * 2, is_query, spans == 1, HEAD_DIM, HEAD_PAD,
    )  # fmt: skip


@triton.jit
def _decode_item(
    item, decode_spans, kv_head,
    q, k_pages, v_pages, k_scales, v_scales, kv_lens, block_tables, cu_q_lens, out, partials, stats,
    BLOCKS_PER_ROW: tl.constexpr, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, HAS_SCALES: tl.constexpr,
    M: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One span of one decode row: its token's queries of the KV head's group. decode_spans: i32[rows], how many each row has."""
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    row, span, spans = _find_row(item, decode_spans, decode_spans)
    kv_len, token = tl.load(kv_lens + row), tl.load(cu_q_lens + row)
    query, dims = tl.arange(0, M), tl.arange(0, HEAD_PAD)
    is_query = query < GROUP
    head_row = token * NUM_HEADS + kv_head * GROUP + query
    q_mask = is_query[:, None] & (dims < HEAD_DIM)[None, :]
    queries = tl.load(q + head_row[:, None] * HEAD_DIM + dims[None, :], mask=q_mask, other=0)
    first_seen = 0
    if WINDOW > 0:
        first_seen = tl.maximum(kv_len - WINDOW, 0)
    first_tile, end_tile = first_seen // TILE, tl.cdiv(kv_len, TILE)
    length = tl.cdiv(end_tile - first_tile, spans)
    first_tile += span * length
    end_tile = tl.minimum(end_tile, first_tile + length)
    weighted, total, highest = _take_tiles(
        queries, tl.full((M,), 0, tl.int32) + kv_len - 1, tl.zeros((M, HEAD_PAD), tl.float32),
        tl.zeros((M,), tl.float32), tl.full((M,), NOTHING_SEEN, tl.float32),
        k_pages, v_pages, k_scales, v_scales, block_tables + row * BLOCKS_PER_ROW, first_seen, kv_len, kv_head, first_tile, end_tile,
        NUM_KV_HEADS, HEAD_DIM, HEAD_PAD, PAGE_SIZE, SCALE, SOFT_CAP, WINDOW, HAS_SCALES, TILE, True,
    )  # fmt: skip
    partial_row = item * NUM_HEADS + kv_head * GROUP + query
    _store(
        weighted, total, highest, out + head_row * HEAD_DIM, partials + partial_row * HEAD_DIM,
        stats + partial_row * 2, is_query, spans == 1, HEAD_DIM, HEAD_PAD,
    )  # fmt: skip


@triton.jit
def attend_kernel(
    q, k_pages, v_pages, k_scales, v_scales, kv_lens, block_tables, cu_q_lens, num_decode_rows,
    out, decode_partials, decode_stats, chunk_partials, chunk_stats,
    num_rows, decode_extra, chunk_extra, num_programs,
    ROWS_PAD: tl.constexpr, BLOCKS_PER_ROW: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, PAGE_SIZE: tl.constexpr,
    SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, HAS_SCALES: tl.constexpr, HAS_CHUNKS: tl.constexpr,
    DECODE_M: tl.constexpr, DECODE_TILE: tl.constexpr, IS_DECODE_CUT: tl.constexpr,
    CHUNK_M: tl.constexpr, CHUNK_TILE: tl.constexpr, IS_CHUNK_CUT: tl.constexpr, MIN_TILES: tl.constexpr,
):  # fmt: skip
    """See `ragged_attention_triton`. Grid: (num_programs * K,). Of decodes alone a program takes one item, at most; else every num_programs-th.

    decode_partials: f32[items, H, D] and decode_stats: f32[items, H, 2] (running maximum, weight); chunk_partials: f32[items, K, CHUNK_M, D] and
    chunk_stats: f32[items, K, CHUNK_M, 2].
    """
    kv_head, place = tl.program_id(0) % NUM_KV_HEADS, tl.program_id(0) // NUM_KV_HEADS
    rows = tl.arange(0, ROWS_PAD)
    lens = tl.load(kv_lens + rows, mask=rows < num_rows, other=0)
    num_decodes = tl.load(num_decode_rows)
    decode_spans = _decode_spans(lens, rows < num_decodes, decode_extra, WINDOW, DECODE_TILE, IS_DECODE_CUT, MIN_TILES)
    num_decode_items = tl.sum(decode_spans)
    if HAS_CHUNKS:
        starts = tl.load(cu_q_lens + rows, mask=rows < num_rows, other=0)
        ends = tl.load(cu_q_lens + rows + 1, mask=rows < num_rows, other=0)
        num_blocks = tl.where((rows >= num_decodes) & (lens > 0), tl.cdiv(ends - starts, CHUNK_M // GROUP), 0)
        chunk_spans = _chunk_spans(
            lens, num_blocks, chunk_extra, WINDOW, CHUNK_M // GROUP, CHUNK_TILE, IS_CHUNK_CUT, MIN_TILES
        )
        num_chunk_items = tl.sum(num_blocks * chunk_spans)
        num_items = num_decode_items + num_chunk_items
        for each in range(place, num_items, num_programs):
            chunks_before = each * num_chunk_items // num_items
            if (each + 1) * num_chunk_items // num_items > chunks_before:
                _chunk_item(
                    num_chunk_items - 1 - chunks_before, num_blocks, chunk_spans, kv_head,
                    q, k_pages, v_pages, k_scales, v_scales, kv_lens, block_tables, cu_q_lens, out, chunk_partials, chunk_stats,
                    BLOCKS_PER_ROW, NUM_KV_HEADS, GROUP, HEAD_DIM, HEAD_PAD, PAGE_SIZE, SCALE, SOFT_CAP, WINDOW, HAS_SCALES,
                    CHUNK_M, CHUNK_TILE,
                )  # fmt: skip
            else:
                _decode_item(
                    each - chunks_before, decode_spans, kv_head,
                    q, k_pages, v_pages, k_scales, v_scales, kv_lens, block_tables, cu_q_lens, out, decode_partials, decode_stats,
                    BLOCKS_PER_ROW, NUM_KV_HEADS, GROUP, HEAD_DIM, HEAD_PAD, PAGE_SIZE, SCALE, SOFT_CAP, WINDOW, HAS_SCALES,
                    DECODE_M, DECODE_TILE,
                )  # fmt: skip
    elif place < num_decode_items:
        _decode_item(
            place, decode_spans, kv_head,
            q, k_pages, v_pages, k_scales, v_scales, kv_lens, block_tables, cu_q_lens, out, decode_partials, decode_stats,
            BLOCKS_PER_ROW, NUM_KV_HEADS, GROUP, HEAD_DIM, HEAD_PAD, PAGE_SIZE, SCALE, SOFT_CAP, WINDOW, HAS_SCALES,
            DECODE_M, DECODE_TILE,
        )  # fmt: skip


@triton.jit
def merge_kernel(
    out, decode_partials, decode_stats, chunk_partials, chunk_stats, kv_lens, cu_q_lens, num_decode_rows,
    num_rows, decode_extra, chunk_extra,
    ROWS_PAD: tl.constexpr, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr, WINDOW: tl.constexpr, HAS_CHUNKS: tl.constexpr,
    DECODE_TILE: tl.constexpr, IS_DECODE_CUT: tl.constexpr,
    CHUNK_M: tl.constexpr, CHUNK_TILE: tl.constexpr, IS_CHUNK_CUT: tl.constexpr, MIN_TILES: tl.constexpr,
    SPANS_TILE: tl.constexpr,
):  # fmt: skip
    """Put the spans of cut rows together. Grid: (tokens * H,); tokens of rows in one span, and of none, stay as they are."""
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    BLOCK_Q: tl.constexpr = CHUNK_M // GROUP
    token, head = tl.program_id(0) // NUM_HEADS, tl.program_id(0) % NUM_HEADS
    rows = tl.arange(0, ROWS_PAD)
    lens = tl.load(kv_lens + rows, mask=rows < num_rows, other=0)
    ends = tl.load(cu_q_lens + rows + 1, mask=rows < num_rows, other=2147483647)
    num_decodes = tl.load(num_decode_rows)
    row = tl.sum((ends <= token).to(tl.int32))
    spans, first = 0, 0
    if row < num_decodes:
        decode_spans = _decode_spans(
            lens, rows < num_decodes, decode_extra, WINDOW, DECODE_TILE, IS_DECODE_CUT, MIN_TILES
        )
        spans = tl.sum(tl.where(rows == row, decode_spans, 0))
        first = tl.sum(tl.where(rows < row, decode_spans, 0)) * NUM_HEADS + head
    elif HAS_CHUNKS and IS_CHUNK_CUT:
        if row < num_rows:  # apart: the line above is decided when the kernel is compiled
            starts = tl.load(cu_q_lens + rows, mask=rows < num_rows, other=2147483647)
            num_blocks = tl.where((rows >= num_decodes) & (lens > 0), tl.cdiv(ends - starts, BLOCK_Q), 0)
            chunk_spans = _chunk_spans(
                lens, num_blocks, chunk_extra, WINDOW, BLOCK_Q, CHUNK_TILE, IS_CHUNK_CUT, MIN_TILES
            )
            spans = tl.sum(tl.where(rows == row, chunk_spans, 0))
            offset = token - tl.load(cu_q_lens + row)
            item = tl.sum(tl.where(rows < row, num_blocks * chunk_spans, 0)) + offset // BLOCK_Q * spans
            query = offset % BLOCK_Q * GROUP + head % GROUP
            first = (item * NUM_KV_HEADS + head // GROUP) * CHUNK_M + query
    is_chunk = row >= num_decodes
    if spans > 1:
        # Each lane of SPANS_TILE merges spans of its own, and at the end the lanes are merged.
        dims = tl.arange(0, HEAD_PAD)
        weighted = tl.zeros((SPANS_TILE, HEAD_PAD), tl.float32)
        total = tl.zeros((SPANS_TILE,), tl.float32)
        highest = tl.full((SPANS_TILE,), NOTHING_SEEN, tl.float32)
        for start in range(0, spans, SPANS_TILE):
            span = start + tl.arange(0, SPANS_TILE)
            is_span = span < spans
            mask = is_span[:, None] & (dims < HEAD_DIM)[None, :]
            if is_chunk:
                at = (first + span * (NUM_KV_HEADS * CHUNK_M)).to(tl.int64)
                maxima = tl.load(chunk_stats + at * 2, mask=is_span, other=NOTHING_SEEN)
                totals = tl.load(chunk_stats + at * 2 + 1, mask=is_span, other=0.0)
                parts = tl.load(chunk_partials + at[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
            else:
                at = (first + span * NUM_HEADS).to(tl.int64)
                maxima = tl.load(decode_stats + at * 2, mask=is_span, other=NOTHING_SEEN)
                totals = tl.load(decode_stats + at * 2 + 1, mask=is_span, other=0.0)
                parts = tl.load(decode_partials + at[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
            new_highest = tl.maximum(highest, maxima)
            scale, fade = tl.exp2(maxima - new_highest), tl.exp2(highest - new_highest)
            weighted = weighted * fade[:, None] + parts * scale[:, None]
            total = total * fade + totals * scale
            highest = new_highest
        scale = tl.exp2(highest - tl.max(highest, 0))
        result = tl.sum(weighted * scale[:, None], 0) / tl.sum(total * scale, 0)
        out_at = out + (token * NUM_HEADS + head) * HEAD_DIM + dims
        tl.store(out_at, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
