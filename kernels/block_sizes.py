"""Tile sizes, warps and pipeline stages of the attention kernel, from a table that is data: one row per (sm, head dim, group, kind).

`choose_sizes` says what a use takes that the table has no row for.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

TABLE = Path(__file__).with_name("block_sizes.json")
Kind = Literal["decode", "mixed"]  # decode: decode-only buckets; mixed: chunks too

MIN_DOT = 16  # rows and columns of the smallest product of tiles


class BlockSizes(NamedTuple):
    """chunk_m: rows of a tile of queries, tokens x heads of a group. chunk_tile, decode_tile: tokens of KV that one iteration takes."""

    chunk_m: int
    chunk_tile: int
    decode_tile: int
    num_warps: int
    num_stages: int


@cache
def read_table() -> tuple[dict[str, Any], ...]:
    """The rows as they stand in the file. One without "group" is for any."""
    return tuple(json.loads(TABLE.read_text(encoding="utf-8"))["sizes"])


def choose_sizes(sm: int, head_dim: int, group: int, kind: Kind, kv_bytes: int) -> BlockSizes:
    """The sizes of a use, or of the nearest one that the table has.

    That is the newest architecture that is not newer, and the next larger head; rows of the group itself before rows for any. Numbers of 4 bytes
    take half the tiles, since twice the bytes have to fit into shared memory.
    """
    sms = sorted({row["sm"] for row in read_table()})
    nearest_sm = max((each for each in sms if each <= sm), default=sms[0])
    rows = [row for row in read_table() if row["sm"] == nearest_sm and row["kind"] == kind]
    heads = sorted({row["head_dim"] for row in rows})
    nearest_head = min((each for each in heads if each >= head_dim), default=heads[-1])
    fitting = [row for row in rows if row["head_dim"] == nearest_head and row.get("group", group) == group]
    chosen = max(fitting, key=lambda row: "group" in row)
    sizes = BlockSizes(*(chosen[name] for name in BlockSizes._fields))
    if kv_bytes < 4:
        return sizes
    return sizes._replace(
        chunk_m=max(sizes.chunk_m // 2, MIN_DOT),
        chunk_tile=max(sizes.chunk_tile // 2, MIN_DOT),
        decode_tile=max(sizes.decode_tile // 2, MIN_DOT),
    )
