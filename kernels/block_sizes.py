"""Tile sizes, warps and pipeline stages of the attention kernel, from a table that is data: one row per (sm, head dim, group, kind).

`choose_sizes` says what a use takes that the table has no row for.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

TABLE = Path(__file__).with_name("block_sizes.json")

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


def kind_of(dtype: DTypeLike, kv_dtype: DTypeLike, *, is_decode_only: bool) -> str:
    """A bucket's kind: decodes alone or mixed, and its numbers, where those are not of 16 bits. Products are of queries' numbers, whatever KV's are."""
    suffix = "-fp32" if np.dtype(dtype).itemsize == 4 else "-int8" if np.dtype(kv_dtype).itemsize == 1 else ""
    return f"{'decode' if is_decode_only else 'mixed'}{suffix}"


def choose_sizes(sm: int, head_dim: int, group: int, kind: str) -> BlockSizes:
    """The sizes of a use, or of the nearest one that the table has.

    That is the newest architecture that is not newer, and the next larger head; a row of the group itself before one for any.
    """
    rows = [row for row in read_table() if row["kind"] == kind and row.get("group", group) == group]
    sms = {row["sm"] for row in rows}
    nearest_sm = max((each for each in sms if each <= sm), default=min(sms))
    heads = {row["head_dim"] for row in rows if row["sm"] == nearest_sm}
    nearest_head = min((each for each in heads if each >= head_dim), default=max(heads))
    fitting = [row for row in rows if (row["sm"], row["head_dim"]) == (nearest_sm, nearest_head)]
    chosen = max(fitting, key=lambda row: "group" in row)
    return BlockSizes(*(chosen[name] for name in BlockSizes._fields))
