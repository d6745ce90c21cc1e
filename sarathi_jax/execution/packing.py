"""A schedule as one packed int32 array in a bucket's fixed shape: one transfer a step. Imports numpy only.

Every field stands at a fixed offset that both sides take from `packed_fields`; floats travel as their bits. What padding holds: token 0 at position 0, slots
P * B and max_num_seqs (dropped by scatters), kv_lens 0, and row bounds equal to the token count.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate
from math import prod
from typing import NamedTuple

import numpy as np

from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.execution.sampling_row import NUM_SAMPLING_COLUMNS
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, row_columns


class PackedField(NamedTuple):
    """Where a field stands in the packed array, and its shape."""

    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


class Geometry(NamedTuple):
    """The engine's sizes that shapes depend on. blocks_per_row N is ceil(max_model_len / page_size). token_budget: tokens of the largest step; pipelines need it."""

    num_pages: int
    page_size: int
    blocks_per_row: int
    max_num_seqs: int
    max_model_len: int
    vocab_size: int
    token_budget: int = 0

    @property
    def num_slots(self) -> int:
        """KV slots: pages x tokens a page. Writes to this slot are dropped."""
        return self.num_pages * self.page_size


@cache
def packed_fields(bucket: Bucket, blocks_per_row: int) -> Mapping[str, PackedField]:
    """Name -> place, of all that a bucket's step takes.

    token_ids, positions, slot_mapping [T]; cu_q_lens [S + 1]; kv_lens, batch_slots [S]; is_pending [S]: the row's token is the one that the device sampled
    last for its batch slot; num_decode_rows [1]; block_tables [S, N]; then by variant: sampling [S, C]; num_prompt_tokens, is_stop_banned [S];
    has_slot_options [S]: the row's slot was set up for its request (of the others, it holds nothing, or what a request before left); token_batch_slots [T]; prompt_rows, prompt_targets [T] and num_prompt_rows [1]: tokens whose successor's log-probability is asked for, and that successor.
    """
    tokens, rows = (bucket.num_tokens,), (bucket.num_rows,)
    shapes: dict[str, tuple[int, ...]] = {
        "token_ids": tokens,
        "positions": tokens,
        "slot_mapping": tokens,
        "cu_q_lens": (bucket.num_rows + 1,),
        "kv_lens": rows,
        "batch_slots": rows,
        "is_pending": rows,
        "num_decode_rows": (1,),
        "block_tables": (bucket.num_rows, blocks_per_row),
    }
    if bucket.variant >= Variant.SAMPLE:
        shapes["sampling"] = (bucket.num_rows, NUM_SAMPLING_COLUMNS)
    if bucket.variant >= Variant.FULL:
        shapes |= {
            "num_prompt_tokens": rows,
            "is_stop_banned": rows,
            "has_slot_options": rows,
            "token_batch_slots": tokens,
        }
        shapes |= {"prompt_rows": tokens, "prompt_targets": tokens, "num_prompt_rows": (1,)}
    offsets = accumulate((prod(shape) for shape in shapes.values()), initial=0)
    return {name: PackedField(offset, shape) for (name, shape), offset in zip(shapes.items(), offsets, strict=False)}


@cache
def packed_size(bucket: Bucket, blocks_per_row: int) -> int:
    """int32 words of a bucket's packed array."""
    return sum(field.size for field in packed_fields(bucket, blocks_per_row).values())


class SlotTables:
    """What the host knows of each batch slot between steps, so that a step's rows are gathered instead of copied one by one.

    sampling: i32[max_num_seqs, C], sampling rows, and variants: i32[max_num_seqs], the least variant that serves each; written when a request is admitted.
    block_tables: i32[max_num_seqs, N].
    """

    def __init__(self, geometry: Geometry) -> None:
        self.sampling = np.zeros((geometry.max_num_seqs, NUM_SAMPLING_COLUMNS), np.int32)
        self.variants = np.zeros(geometry.max_num_seqs, np.int32)
        self.block_tables = np.zeros((geometry.max_num_seqs, geometry.blocks_per_row), np.int32)
        self._seen: list[np.ndarray | None] = [None] * geometry.max_num_seqs

    def variant(self, rows: Sequence[ScheduledRow]) -> Variant:
        """The least variant that serves all rows."""
        return Variant(self.variants[row_columns(rows).batch_slots].max())

    def update(self, rows: Sequence[ScheduledRow]) -> None:
        """Take in block tables that have changed: a request's table is a new view whenever it grows, and the same one otherwise."""
        seen = self._seen
        for row in rows:
            table = row.block_table
            if seen[row.batch_slot] is not table:
                seen[row.batch_slot] = table
                self.block_tables[row.batch_slot, : len(table)] = table


def pack(schedule: Schedule, bucket: Bucket, geometry: Geometry, slots: SlotTables) -> np.ndarray:
    """Lay a schedule out in a bucket's shape.

    Args:
      schedule: not larger than the bucket; one-token rows first.
      slots: with the sampling rows of all requests in the schedule; its block tables are brought up to date here.
    Returns: i32[packed_size], freshly made: the caller may hand it to a transfer that is still under way at the next call.
    """
    fields = packed_fields(bucket, geometry.blocks_per_row)
    packed = np.zeros(packed_size(bucket, geometry.blocks_per_row), np.int32)
    views = {
        name: packed[field.offset : field.offset + field.size].reshape(field.shape) for name, field in fields.items()
    }
    rows, count = tuple(schedule.rows), len(schedule.rows)
    starts, lengths, batch_slots = row_columns(schedule.rows)
    slots.update(rows)
    np.take(slots.block_tables, batch_slots, axis=0, out=views["block_tables"][:count], mode="clip")
    views["batch_slots"][:count] = batch_slots
    views["batch_slots"][count:] = geometry.max_num_seqs
    views["num_decode_rows"][0] = schedule.num_decode_rows
    bounds = views["cu_q_lens"]
    np.cumsum(lengths, out=bounds[1 : count + 1])
    bounds[count + 1 :] = schedule.num_tokens
    views["kv_lens"][:count] = starts + lengths
    _fill_tokens(views, rows, starts, lengths, geometry)
    if bucket.variant >= Variant.SAMPLE:
        views["sampling"][:count] = slots.sampling[batch_slots]
    if bucket.variant >= Variant.FULL:
        views["has_slot_options"][:count] = slots.variants[batch_slots] == Variant.FULL
        _fill_full(views, rows, lengths, geometry)
    return packed


def pack_padding(bucket: Bucket, geometry: Geometry) -> np.ndarray:
    """A step of a bucket in which nothing is: it runs, and changes nothing that anybody reads. Returns: as `pack`."""
    fields = packed_fields(bucket, geometry.blocks_per_row)
    packed = np.zeros(packed_size(bucket, geometry.blocks_per_row), np.int32)
    dropped = {
        "slot_mapping": geometry.num_slots,
        "batch_slots": geometry.max_num_seqs,
        "token_batch_slots": geometry.max_num_seqs,
    }
    for name in dropped.keys() & fields.keys():
        field = fields[name]
        packed[field.offset : field.offset + field.size] = dropped[name]
    return packed


def _fill_tokens(
    views: Mapping[str, np.ndarray],
    rows: Sequence[ScheduledRow],
    starts: np.ndarray,
    lengths: np.ndarray,
    geometry: Geometry,
) -> None:
    """Tokens, positions and slots; all rows at once but for the tokens of chunks."""
    token_ids, bounds, num_tokens = views["token_ids"], views["cu_q_lens"], int(lengths.sum())
    row_of_token = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    positions = np.arange(num_tokens, dtype=np.int32) + (starts - bounds[: len(rows)])[row_of_token]
    blocks, offsets = np.divmod(positions, geometry.page_size)
    views["positions"][:num_tokens] = positions
    views["slot_mapping"][:num_tokens] = views["block_tables"][row_of_token, blocks] * geometry.page_size + offsets
    views["slot_mapping"][num_tokens:] = geometry.num_slots
    is_pending, first_tokens = views["is_pending"], bounds.tolist()
    for index, row in enumerate(rows):
        if row.token_ids is None:
            is_pending[index] = 1
        elif row.num_tokens == 1:
            token_ids[first_tokens[index]] = row.token_ids[0]
        else:
            token_ids[first_tokens[index] : first_tokens[index + 1]] = row.token_ids


def _fill_full(
    views: Mapping[str, np.ndarray], rows: Sequence[ScheduledRow], lengths: np.ndarray, geometry: Geometry
) -> None:
    count, num_tokens = len(rows), int(lengths.sum())
    views["num_prompt_tokens"][:count] = [row.num_prompt_tokens for row in rows]
    views["is_stop_banned"][:count] = [row.num_output_tokens < row.sampling.min_tokens for row in rows]
    views["token_batch_slots"][:num_tokens] = np.repeat(views["batch_slots"][:count], lengths)
    views["token_batch_slots"][num_tokens:] = geometry.max_num_seqs
    asked = 0
    for row, first_token in zip(rows, views["cu_q_lens"].tolist(), strict=False):
        targets = prompt_targets(row)
        views["prompt_rows"][asked : asked + len(targets)] = np.arange(first_token, first_token + len(targets))
        views["prompt_targets"][asked : asked + len(targets)] = targets
        asked += len(targets)
    views["num_prompt_rows"][0] = asked


def prompt_targets(row: ScheduledRow) -> list[int]:
    """The prompt tokens whose log-probabilities a row's step can tell: those that follow the row's tokens."""
    if row.sampling.prompt_logprobs is None or row.token_ids is None:
        return []
    count = max(min(row.num_tokens, row.num_prompt_tokens - row.start - 1), 0)
    targets = [*row.token_ids[1:]] if row.next_token_id is None else [*row.token_ids[1:], row.next_token_id]
    assert len(targets) >= count, "the scheduler says what follows a prompt chunk"
    return targets[:count]
