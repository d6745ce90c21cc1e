"""The table of tile sizes: what a use takes that it has a row for, and what one takes that it has none for."""

from typing import Any

import pytest

from sarathi_jax.kernels import block_sizes
from sarathi_jax.kernels.block_sizes import BlockSizes, choose_sizes, kind_of, read_table

ROWS: list[dict[str, Any]] = [
    {"sm": sm, "head_dim": head_dim, "kind": "mixed", **BlockSizes(sm, head_dim, 16, 4, 3)._asdict()}
    for sm in (80, 90)
    for head_dim in (64, 128)
]
OWN = {"sm": 80, "head_dim": 64, "group": 71, "kind": "mixed", **BlockSizes(1, 2, 3, 4, 5)._asdict()}


@pytest.mark.parametrize(
    ("sm", "head_dim", "group", "expected"),
    [
        (80, 64, 4, (80, 64)),
        (90, 128, 4, (90, 128)),
        (86, 64, 4, (80, 64)),  # the newest that is not newer
        (100, 64, 4, (90, 64)),
        (75, 64, 4, (80, 64)),  # older than all: the oldest
        (80, 80, 4, (80, 128)),  # the next larger head
        (80, 512, 4, (80, 128)),
        (80, 64, 71, (1, 2)),  # a row of its own
        (80, 128, 71, (80, 128)),
    ],
)
def test_the_nearest_row_serves(
    sm: int, head_dim: int, group: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_sizes, "read_table", lambda: (*ROWS, OWN))
    assert choose_sizes(sm, head_dim, group, "mixed")[:2] == expected


def test_kinds_tell_decodes_from_mixes_and_numbers_by_their_size() -> None:
    assert kind_of("bfloat16", "bfloat16", is_decode_only=True) == "decode"
    assert kind_of("float16", "float16", is_decode_only=False) == "mixed"
    assert kind_of("bfloat16", "int8", is_decode_only=False) == "mixed-int8"
    assert (
        kind_of("float32", "float32", is_decode_only=True)
        == kind_of("float32", "int8", is_decode_only=True)
        == "decode-fp32"
    )


def test_every_kind_is_there_for_both_architectures_and_all_sizes_are_powers_of_two() -> None:
    kinds = {(row["sm"], row["kind"]) for row in read_table()}
    assert len(kinds) == 2 * 6
    for row in read_table():
        sizes = BlockSizes(*(row[name] for name in BlockSizes._fields))
        assert all(size >= 16 and size & (size - 1) == 0 for size in sizes[:3])
