"""Microbatches on their way through a pipeline: which bucket a tick has, and what each stage finds in it."""

import numpy as np
import pytest

from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant
from sarathi_jax.execution.microbatches import Microbatch, MicrobatchWindow, fit
from sarathi_jax.execution.packing import Geometry, SlotTables, pack, pack_padding, packed_fields, packed_size
from sarathi_jax.execution.sampling_row import pack_sampling_row
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow

GEOMETRY = Geometry(
    num_pages=64, page_size=4, blocks_per_row=8, max_num_seqs=8, max_model_len=32, vocab_size=97, token_budget=32
)
TABLE = BucketTable(32, 8)


def packed(num_rows: int, num_tokens: int, variant: Variant) -> Microbatch:
    """A step of rows with so many tokens each, in its own smallest bucket."""
    slots, params = SlotTables(GEOMETRY), SamplingParams(temperature=0.5)
    slots.sampling[:] = pack_sampling_row(params, 7)
    slots.variants[:] = variant
    rows = []
    for index in range(num_rows):
        table = np.arange(index * 8, index * 8 + 8, dtype=np.int32)
        tokens = list(range(10 * index, 10 * index + num_tokens))
        rows.append(ScheduledRow(str(index), 3, num_tokens, tokens, table, index, True, False, (), 3, 1, params, 7))
    num_decodes = num_rows if num_tokens == 1 else 0
    schedule = Schedule(0, tuple(rows), num_rows * num_tokens, num_decodes)
    bucket = TABLE.choose(
        schedule.num_tokens, num_rows, is_decode_only=schedule.is_decode_only, variant=slots.variant(schedule.rows)
    )
    return Microbatch(bucket, pack(schedule, bucket, GEOMETRY, slots))


def field(packed: np.ndarray, bucket: Bucket, name: str) -> np.ndarray:
    place = packed_fields(bucket, GEOMETRY.blocks_per_row)[name]
    return packed[place.offset : place.offset + place.size].reshape(place.shape)


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize(("num_rows", "num_tokens"), [(3, 1), (2, 5)])
def test_a_step_in_a_larger_bucket_has_padding_behind_each_of_its_fields(
    num_rows: int, num_tokens: int, variant: Variant
) -> None:
    small = packed(num_rows, num_tokens, variant)
    large = Bucket(32, 8, False, variant)
    got = fit(small, large, GEOMETRY)
    for name, place in packed_fields(large, GEOMETRY.blocks_per_row).items():
        mine, own = field(got, large, name), field(small.packed, small.bucket, name)
        inside = tuple(slice(size) for size in own.shape)
        np.testing.assert_array_equal(mine[inside], own, err_msg=name)
        outside = np.ones(place.shape, bool)
        outside[inside] = False
        padding = {"cu_q_lens": num_rows * num_tokens, "slot_mapping": 256, "batch_slots": 8, "token_batch_slots": 8}
        assert (mine[outside] == padding.get(name, 0)).all(), name


def test_fields_of_a_variant_come_and_go() -> None:
    full = packed(2, 5, Variant.FULL)
    greedy = fit(full, Bucket(32, 8, False, Variant.GREEDY), GEOMETRY)
    assert len(greedy) == packed_size(Bucket(32, 8, False, Variant.GREEDY), 8)
    np.testing.assert_array_equal(
        field(greedy, Bucket(32, 8, False, Variant.GREEDY), "token_ids")[:10],
        field(full.packed, full.bucket, "token_ids")[:10],
    )


def test_a_tick_holds_the_newest_first_in_the_smallest_bucket_for_all() -> None:
    window = MicrobatchWindow(3, TABLE, GEOMETRY)
    decodes, chunk = packed(4, 1, Variant.SAMPLE), packed(2, 9, Variant.GREEDY)
    first = window.advance(decodes)
    assert first.bucket == Bucket(4, 4, True, Variant.GREEDY), "nothing is sampled yet"
    second = window.advance(chunk)
    assert second.bucket == Bucket(32, 8, False, Variant.GREEDY)
    third = window.advance(None)
    assert third.bucket == Bucket(32, 8, False, Variant.SAMPLE), "the decodes leave the last stage"
    size = packed_size(third.bucket, 8)
    padding, middle, last = third.packed.reshape(3, size)
    np.testing.assert_array_equal(padding, pack_padding(third.bucket, GEOMETRY))
    np.testing.assert_array_equal(middle, fit(chunk, third.bucket, GEOMETRY))
    np.testing.assert_array_equal(last, fit(decodes, third.bucket, GEOMETRY))
    assert window.advance(None).bucket.variant is Variant.GREEDY


def test_decodes_that_are_larger_than_the_chunks_beside_them_fit() -> None:
    window = MicrobatchWindow(2, TABLE, GEOMETRY)
    window.advance(packed(8, 1, Variant.GREEDY))
    assert window.advance(packed(1, 2, Variant.GREEDY)).bucket == Bucket(32, 8, False, Variant.GREEDY)


def test_one_stage_takes_each_step_as_it_is() -> None:
    step = packed(2, 5, Variant.GREEDY)
    assert MicrobatchWindow(1, TABLE, GEOMETRY).advance(step) is step


def test_what_is_given_up_is_gone() -> None:
    window = MicrobatchWindow(2, TABLE, GEOMETRY)
    window.advance(packed(4, 1, Variant.SAMPLE))
    window.clear()
    assert window.oldest is None
    assert window.advance(packed(1, 1, Variant.GREEDY)).bucket == Bucket(1, 1, True, Variant.GREEDY)
