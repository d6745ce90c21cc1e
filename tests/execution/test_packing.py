"""The packed array: what is unpacked from it is the schedule, and padding holds what `packing` says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.execution.packing import Geometry, SlotTables, pack, packed_fields, packed_size, prompt_targets
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow

GEOMETRY = Geometry(num_pages=64, page_size=4, blocks_per_row=8, max_num_seqs=8, max_model_len=32, vocab_size=97)
TABLE = BucketTable(40, 8)


def make_slots(geometry: Geometry = GEOMETRY) -> SlotTables:
    """Tables whose sampling rows are all different."""
    slots = SlotTables(geometry)
    slots.sampling[:] = np.arange(slots.sampling.size).reshape(slots.sampling.shape) + 1000
    return slots


def make_row(
    slot: int, tokens: Sequence[int], *, start: int = 0, pages: Sequence[int] = range(8), **changes: Any
) -> ScheduledRow:
    row = ScheduledRow(
        request_id=str(slot),
        start=start,
        num_tokens=len(tokens),
        token_ids=list(tokens),
        block_table=np.array(pages, np.int32),
        batch_slot=slot,
        does_sample=True,
        is_first=False,
        context_token_ids=(),
        num_prompt_tokens=start + len(tokens),
        num_output_tokens=0,
        sampling=SamplingParams(),
        seed=0,
    )
    return row._replace(**changes)


def make_schedule(rows: Sequence[ScheduledRow]) -> Schedule:
    ordered = sorted(rows, key=lambda row: row.num_tokens > 1)
    num_decode_rows = sum(row.num_tokens == 1 for row in rows)
    return Schedule(0, tuple(ordered), sum(row.num_tokens for row in rows), num_decode_rows)


def unpack(
    schedule: Schedule,
    variant: Variant,
    geometry: Geometry = GEOMETRY,
    table: BucketTable = TABLE,
    slots: SlotTables | None = None,
):
    """The packed array's fields by name."""
    num_rows, is_decode_only = len(schedule.rows), schedule.is_decode_only
    bucket = table.choose(schedule.num_tokens, num_rows, is_decode_only=is_decode_only, variant=variant)
    packed = pack(schedule, bucket, geometry, slots or make_slots(geometry))
    assert packed.dtype == np.int32
    assert packed.shape == (packed_size(bucket, geometry.blocks_per_row),)
    fields = packed_fields(bucket, geometry.blocks_per_row)
    return {
        name: packed[field.offset : field.offset + field.size].reshape(field.shape) for name, field in fields.items()
    }


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    rows, left = [], 40
    pages = draw(st.permutations(range(64)))
    for slot in draw(st.permutations(range(8)))[: draw(st.integers(1, 8))]:
        start = draw(st.integers(0, 31))
        length = min(draw(st.integers(1, 32 - start)), left - 8 + len(rows))
        left -= length
        is_pending = length == 1 and draw(st.booleans())
        tokens = draw(st.lists(st.integers(0, 96), min_size=length, max_size=length))
        row = make_row(slot, tokens, start=start, pages=pages[slot * 8 : slot * 8 + 8])
        min_tokens, outputs = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        more = SamplingParams(min_tokens=min_tokens)
        rows.append(row._replace(token_ids=None if is_pending else tokens, num_output_tokens=outputs, sampling=more))
    return make_schedule(rows)


def check_rows(got: Mapping[str, np.ndarray], schedule: Schedule) -> None:
    assert got["num_decode_rows"].tolist() == [schedule.num_decode_rows]
    for index, row in enumerate(schedule.rows):
        tokens = slice(got["cu_q_lens"][index], got["cu_q_lens"][index + 1])
        positions = np.arange(row.start, row.start + row.num_tokens)
        assert got["positions"][tokens].tolist() == positions.tolist()
        assert got["token_ids"][tokens].tolist() == ([0] if row.token_ids is None else row.token_ids)
        assert got["is_pending"][index] == (row.token_ids is None)
        assert got["slot_mapping"][tokens].tolist() == [row.block_table[p // 4] * 4 + p % 4 for p in positions]
        assert got["kv_lens"][index] == row.start + row.num_tokens
        assert got["batch_slots"][index] == row.batch_slot
        num_blocks = -(-(row.start + row.num_tokens) // 4)
        assert got["block_tables"][index, :num_blocks].tolist() == row.block_table[:num_blocks].tolist()


@given(schedules(), st.sampled_from(Variant))
def test_what_was_packed_is_the_schedule(schedule: Schedule, variant: Variant):
    check_rows(unpack(schedule, variant), schedule)


@given(st.lists(schedules(), max_size=4))
def test_slots_forget_the_requests_they_had_before(steps: list[Schedule]):
    """One set of tables over steps whose slots change hands and pages from one to the next."""
    slots = make_slots()
    for schedule in steps:
        check_rows(unpack(schedule, Variant.SAMPLE, slots=slots), schedule)


def test_a_table_that_grows_is_taken_in():
    slots, buffer = make_slots(), np.array([7, 3, 9, 1], np.int32)
    for num_pages in (1, 2, 4):
        row = make_row(5, [1], start=4 * num_pages - 1, pages=())._replace(block_table=buffer[:num_pages])
        check_rows(unpack(make_schedule([row]), Variant.GREEDY, slots=slots), make_schedule([row]))


@given(schedules(), st.sampled_from(Variant))
def test_padding_is_harmless(schedule: Schedule, variant: Variant):
    got, num_rows, num_tokens = unpack(schedule, variant), len(schedule.rows), schedule.num_tokens
    assert not got["token_ids"][num_tokens:].any()
    assert not got["positions"][num_tokens:].any()
    assert (got["slot_mapping"][num_tokens:] == GEOMETRY.num_slots).all()
    assert (got["cu_q_lens"][num_rows:] == num_tokens).all()
    assert not got["kv_lens"][num_rows:].any()
    assert not got["is_pending"][num_rows:].any()
    assert (got["batch_slots"][num_rows:] == GEOMETRY.max_num_seqs).all()
    assert not got["block_tables"][num_rows:].any()


@given(schedules())
def test_each_row_has_its_slots_sampling_row(schedule: Schedule):
    slots = [row.batch_slot for row in schedule.rows]
    sampling = unpack(schedule, Variant.SAMPLE)["sampling"]
    np.testing.assert_array_equal(sampling[: len(slots)], make_slots().sampling[slots])
    assert not sampling[len(slots) :].any()


@given(schedules())
def test_what_the_full_variant_adds(schedule: Schedule):
    tables, num_rows = make_slots(), len(schedule.rows)
    tables.variants[:] = [2, 0, 1, 2, 0, 1, 2, 2]
    got = unpack(schedule, Variant.FULL, slots=tables)
    has_options = [row.batch_slot in {0, 3, 6, 7} for row in schedule.rows]
    assert got["has_slot_options"].tolist() == [*has_options, *[0] * (len(got["kv_lens"]) - num_rows)]
    slots = np.repeat([row.batch_slot for row in schedule.rows], [row.num_tokens for row in schedule.rows])
    assert got["token_batch_slots"][: schedule.num_tokens].tolist() == slots.tolist()
    assert (got["token_batch_slots"][schedule.num_tokens :] == GEOMETRY.max_num_seqs).all()
    assert got["num_prompt_tokens"][:num_rows].tolist() == [row.num_prompt_tokens for row in schedule.rows]
    banned = [row.num_output_tokens < row.sampling.min_tokens for row in schedule.rows]
    assert got["is_stop_banned"][:num_rows].tolist() == banned
    assert not got["num_prompt_rows"][0]


def asking(tokens: Sequence[int], **changes: Any) -> ScheduledRow:
    return make_row(3, tokens, sampling=SamplingParams(prompt_logprobs=0), **changes)


@pytest.mark.parametrize(
    ("row", "targets"),
    [
        (asking([5, 6, 7]), [6, 7]),
        (asking([5, 6, 7], num_prompt_tokens=9, next_token_id=8), [6, 7, 8]),
        (asking([5], start=8, num_prompt_tokens=9), []),
        (asking([5], start=7, num_prompt_tokens=9, next_token_id=4), [4]),
        (asking([5, 6, 7, 8], start=2, num_prompt_tokens=4), [6]),
        (asking([5], start=20, num_prompt_tokens=4, token_ids=None), []),
        (make_row(3, [5, 6, 7]), []),
    ],
    ids=["whole", "chunk", "last token", "one token chunk", "recomputed output", "decode", "not asked"],
)
def test_prompt_targets_are_the_prompt_tokens_that_follow(row: ScheduledRow, targets: list[int]):
    assert prompt_targets(row) == targets


def test_a_step_takes_the_least_variant_that_serves_all_its_rows():
    slots = make_slots()
    slots.variants[:] = [0, 1, 0, 2, 0, 0, 0, 0]
    rows = tuple(make_row(slot, [1]) for slot in (2, 0, 1, 3))
    assert [slots.variant(rows[:end]) for end in (1, 2, 3, 4)] == [0, 0, Variant.SAMPLE, Variant.FULL]


def test_prompt_targets_stand_beside_their_rows():
    rows = [make_row(0, [1]), asking([5, 6, 7]), asking([2, 3], num_prompt_tokens=4, next_token_id=9)]
    got = unpack(make_schedule(rows), Variant.FULL)
    assert got["num_prompt_rows"].tolist() == [4]
    assert got["prompt_rows"][:4].tolist() == [1, 2, 4, 5]
    assert got["prompt_targets"][:4].tolist() == [6, 7, 3, 9]


def test_arrays_of_two_steps_share_no_memory():
    """The first may still be on its way to the device."""
    schedule = make_schedule([make_row(0, [1, 2, 3])])
    first = pack(schedule, TABLE.buckets[-1], GEOMETRY, make_slots())
    second = pack(schedule, TABLE.buckets[-1], GEOMETRY, make_slots())
    assert not np.shares_memory(first, second)


def test_packs_256_rows():
    geometry = Geometry(4096, 16, 128, 256, 2048, 32000)
    rows = [make_row(slot, [slot], start=8 * slot, pages=range(slot, slot + 128)) for slot in range(255)]
    rows.append(make_row(255, range(257), pages=range(300, 428)))
    got = unpack(make_schedule(rows), Variant.GREEDY, geometry, BucketTable(512, 256))
    assert got["token_ids"][:512].tolist() == [*range(255), *range(257)]
    assert got["kv_lens"].tolist() == [8 * slot + 1 for slot in range(255)] + [257]
    assert got["slot_mapping"][254] == (254 + 8 * 254 // 16) * 16 + 8 * 254 % 16
    assert got["cu_q_lens"].tolist() == [*range(256), 512]
