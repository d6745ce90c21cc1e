"""Every step an engine can schedule has a bucket, the smallest one that holds it, and buckets are few and not wasteful."""

import itertools

import pytest

from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant

SIZES = [(1, 1), (7, 3), (16, 16), (32, 8), (100, 5), (128, 128), (512, 128), (2048, 256), (1000, 17)]


def shapes(table: BucketTable, variant: Variant, *, is_decode_only: bool) -> list[tuple[int, int]]:
    return [
        (bucket.num_tokens, bucket.num_rows)
        for bucket in table.buckets
        if bucket.variant == variant and bucket.is_decode_only == is_decode_only
    ]


def test_the_usual_table():
    table = BucketTable(512, 128)
    decode = [(size, size) for size in (1, 4, 16, 32, 64, 128)]
    mixed = [(32, 32), (128, 128), (256, 128), (384, 128), (512, 128)]
    for variant in (Variant.GREEDY, Variant.SAMPLE):
        assert shapes(table, variant, is_decode_only=True) == decode
        assert shapes(table, variant, is_decode_only=False) == mixed
    assert shapes(table, Variant.FULL, is_decode_only=True) == decode[1::2]
    assert shapes(table, Variant.FULL, is_decode_only=False) == mixed[::2]


def test_a_budget_between_tiles_is_a_bucket():
    mixed = shapes(BucketTable(1000, 17), Variant.GREEDY, is_decode_only=False)
    assert [size for size, _ in mixed] == [32, 128, 256, 384, 512, 768, 1000]
    assert {rows for _, rows in mixed} == {17}


@pytest.mark.parametrize(("budget", "max_num_seqs"), SIZES)
@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("is_decode_only", [True, False])
def test_every_step_has_the_smallest_bucket(budget: int, max_num_seqs: int, variant: Variant, is_decode_only: bool):
    table = BucketTable(budget, max_num_seqs)
    for num_tokens in range(1, (max_num_seqs if is_decode_only else budget) + 1):
        for num_rows in {num_tokens} if is_decode_only else {1, min(num_tokens, max_num_seqs)}:
            chosen = table.choose(num_tokens, num_rows, is_decode_only=is_decode_only, variant=variant)
            assert (chosen.variant, chosen.is_decode_only) == (variant, is_decode_only)
            assert chosen.num_tokens >= num_tokens
            assert chosen.num_rows >= num_rows
            smaller = [size for size, _ in shapes(table, variant, is_decode_only=is_decode_only) if size >= num_tokens]
            assert chosen.num_tokens == min(smaller)


@pytest.mark.parametrize(("budget", "max_num_seqs"), SIZES)
def test_programs_are_few_and_no_two_alike(budget: int, max_num_seqs: int):
    buckets = BucketTable(budget, max_num_seqs).buckets
    assert len(set(buckets)) == len({bucket.name for bucket in buckets}) == len(buckets) <= 48


@pytest.mark.parametrize("budget", [512, 1024, 2048, 4096])
def test_mixed_steps_are_padded_by_a_third_at_most_where_work_grows(budget: int):
    """Above two tiles: the smallest step that takes a bucket fills two thirds of it."""
    sizes = [size for size, _ in shapes(BucketTable(budget, 128), Variant.GREEDY, is_decode_only=False)]
    for before, size in itertools.pairwise(sizes):
        assert before < 256 or before + 1 > 2 / 3 * size


def test_a_sparse_table_has_two_programs_a_variant():
    table = BucketTable(512, 8, variants=(Variant.SAMPLE,), is_sparse=True)
    assert table.buckets == (Bucket(8, 8, True, Variant.SAMPLE), Bucket(512, 8, False, Variant.SAMPLE))
    assert table.choose(1, 1, is_decode_only=True, variant=Variant.SAMPLE) == table.buckets[0]


def test_names_tell_buckets_apart():
    assert Bucket(16, 16, True, Variant.GREEDY).name == "decode 16x16 greedy"
    assert Bucket(512, 128, False, Variant.FULL).name == "mixed 512x128 full"


@pytest.mark.parametrize(("num_tokens", "num_rows", "is_decode_only"), [(33, 1, False), (9, 9, True), (10, 9, False)])
def test_a_step_over_the_limits_is_a_fault(num_tokens: int, num_rows: int, is_decode_only: bool):
    table = BucketTable(32, 8)
    with pytest.raises(AssertionError, match="larger than the largest bucket"):
        table.choose(num_tokens, num_rows, is_decode_only=is_decode_only, variant=Variant.GREEDY)
