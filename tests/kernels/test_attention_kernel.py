"""The GPU's attention kernel in Triton's interpreter: small steps over all head sizes, tiles and cuts, with NaN wherever no token is, against float64.

Broken by hand, once each, and caught here or in `test_ragged_attention`: the causal mask, the end of the tiles that need none, the window's
edge, the token and the page it begins with, the page lookup, its remainder, its reading ahead and the table's stride, values past the last token, the
last partial tile, the rescaling of what was summed, the soft cap, both scales, the token and the head of a tile's rows, the neighbour's KV head, 64-bit
slots, the start, length, end and number of spans, the bound on them, the order of items and their alternation, whether a tile is whole, the items
that a program takes after its first, and of the merge: the maxima, the weights, the spans past its first 16, the last span, strides, first items, and rows in one span.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.kernels import reference, triton_launch
from sarathi_jax.kernels.block_sizes import BlockSizes
from sarathi_jax.kernels.gpu import GpuTarget
from sarathi_jax.kernels.layer_kv import LayerKV

pytest.importorskip("triton", reason="triton can't be had here: it has wheels for Linux alone")

from sarathi_jax.kernels import ragged_attention_triton as attention

Array = np.ndarray[Any, np.dtype[Any]]
GARBAGE_PAGES = [-7, 10**9]


@dataclasses.dataclass(frozen=True)
class Case:
    """One step. rows: (q_len, history, pages shared with the first row), decodes first. num_padding: rows and tokens that are not there."""

    rows: tuple[tuple[int, int, int], ...]
    num_kv_heads: int = 1
    group: int = 2
    head_dim: int = 64
    page_size: int = 4
    window: int | None = None
    soft_cap: float | None = None
    is_decode_only: bool = False
    num_padding: int = 3
    chunk_m: int = 16
    tile: int = 16
    num_multiprocessors: int = 2
    seed: int = 0

    @property
    def lens(self) -> list[int]:
        return [q_len + history for q_len, history, _ in self.rows]


@pytest.fixture(scope="module", autouse=True)
def spans_of_one_tile() -> Iterator[None]:
    """So that rows of a few tiles are cut as rows of thousands are, and programs of a mixed launch take several items."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MIN_TILES": 1,
            "DECODE_ITEMS": 2,
            "MIXED_DECODE_ITEMS": 2,
            "CHUNK_ITEMS": 2,
            "MIXED_PROGRAMS": 1,
        }.items():
            patch.setattr(attention, name, value)
        yield


def step_arrays(case: Case) -> dict[str, Any]:
    rng, size = np.random.default_rng(case.seed), case.page_size
    blocks = [-(-length // size) for length in case.lens]
    ids = iter(rng.permutation(sum(blocks) + 2))
    tables = rng.choice(GARBAGE_PAGES, (len(blocks) + case.num_padding, max(blocks) + 1)).astype(np.int32)
    pools = np.full((2, (sum(blocks) + 2) * size, case.num_kv_heads, case.head_dim), np.nan, np.float32)
    for row, (_, history, shared) in enumerate(case.rows):
        num_shared = min(shared, history // size, case.rows[0][1] // size) if row else 0
        tables[row, :num_shared] = tables[0, :num_shared]
        tables[row, num_shared : blocks[row]] = [next(ids) for _ in range(num_shared, blocks[row])]
        own = np.arange(num_shared * size, case.lens[row])
        pools[:, tables[row, own // size] * size + own % size] = rng.standard_normal((2, len(own), *pools.shape[2:]))
    for row, (_, history, _) in enumerate(case.rows):
        if case.window is not None:  # what is wholly before the window of the row's first query is garbage too
            tables[row, : max(history - case.window + 1, 0) // size] = rng.choice(GARBAGE_PAGES)
    q_lens = [q_len for q_len, _, _ in case.rows]
    bounds = np.cumsum([0, *q_lens, *[0] * case.num_padding], dtype=np.int32)
    q = np.full((sum(q_lens) + case.num_padding, case.num_kv_heads * case.group, case.head_dim), np.nan, np.float32)
    q[: bounds[-1]] = rng.standard_normal((bounds[-1], *q.shape[1:]))
    lens = np.array([*case.lens, *[0] * case.num_padding], np.int32)
    return {"q": q, "pools": pools, "kv_lens": lens, "block_tables": tables, "cu_q_lens": bounds}


def judged(case: Case, arrays: dict[str, Any]) -> Array:
    tables = arrays["block_tables"].clip(0, None) * (arrays["block_tables"] < 10**9)  # before a window it never looks
    options = {
        "scale": case.head_dim**-0.5,
        "window": case.window,
        "soft_cap": case.soft_cap,
        "page_size": case.page_size,
    }
    rows = {"kv_lens": arrays["kv_lens"], "block_tables": tables, "cu_q_lens": arrays["cu_q_lens"]}
    pools = {"k_pages": arrays["pools"][0], "v_pages": arrays["pools"][1]}
    whole = reference.ragged_paged_attention(q=arrays["q"], **pools, **rows, **options, dtype=np.float64)
    return whole[: arrays["cu_q_lens"][-1]]


def attend(case: Case, arrays: dict[str, Any], dtype: Any = np.float32) -> Array:
    num_decodes = next((row for row, (q_len, _, _) in enumerate(case.rows) if q_len > 1), len(case.rows))
    rows = {name: jnp.asarray(arrays[name]) for name in ("kv_lens", "block_tables", "cu_q_lens")}
    out = attention.ragged_paged_attention(
        jnp.asarray(arrays["q"].astype(dtype)),
        LayerKV(*(jnp.asarray(pool.astype(dtype)) for pool in arrays["pools"])),
        **rows,
        num_decode_rows=jnp.int32(num_decodes),
        page_size=case.page_size,
        scale=case.head_dim**-0.5,
        window=case.window,
        soft_cap=case.soft_cap,
        is_decode_only=case.is_decode_only,
        target=GpuTarget(80, case.num_multiprocessors),
        sizes=BlockSizes(case.chunk_m, case.tile, case.tile, 4, 3),
    )
    return np.asarray(out)[: arrays["cu_q_lens"][-1]]


def check(case: Case) -> None:
    arrays = step_arrays(case)
    np.testing.assert_allclose(attend(case, arrays), judged(case, arrays), rtol=0, atol=1e-5)


@st.composite
def cases(draw: st.DrawFn, is_decode_only: bool) -> Case:
    histories, shared = st.integers(0, 90), st.integers(0, 6)
    rows = draw(st.lists(st.tuples(st.just(1), histories, shared), min_size=int(is_decode_only), max_size=4))
    if not is_decode_only:
        rows += draw(st.lists(st.tuples(st.integers(2, 20), histories, shared), min_size=1, max_size=2))
    return Case(
        tuple(rows),
        num_kv_heads=draw(st.sampled_from([1, 2])),
        group=draw(st.sampled_from([1, 3, 4])),
        head_dim=draw(st.sampled_from([64, 80, 96, 128, 256])),
        page_size=draw(st.sampled_from([1, 4, 16, 32])),
        window=draw(st.sampled_from([None, None, 1, 17, 40])),
        soft_cap=draw(st.sampled_from([None, 5.0])),
        is_decode_only=is_decode_only,
        num_padding=draw(st.integers(0, 3)),
        chunk_m=draw(st.sampled_from([16, 32])),
        tile=draw(st.sampled_from([16, 32])),
        num_multiprocessors=draw(st.sampled_from([1, 4])),
        seed=draw(st.integers(0, 999)),
    )


@settings(max_examples=40)
@given(case=cases(is_decode_only=True))
def test_decodes_are_as_in_float64(case: Case) -> None:
    check(case)


@settings(max_examples=40)
@given(case=cases(is_decode_only=False))
def test_any_mix_is_as_in_float64(case: Case) -> None:
    check(case)


LONG = Case(((1, 200, 0), (1, 3, 0), (1, 63, 0), (40, 120, 0), (9, 0, 0)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_multiprocessors": 16},  # cut into single tiles
        {"num_multiprocessors": 16, "window": 49},  # some windows begin where a page does
        {"group": 20, "chunk_m": 64},  # more query heads than the smallest tile has rows
        {"group": 5, "num_kv_heads": 3, "chunk_m": 64},  # rows of a tile that no query has
        {"page_size": 64, "tile": 16},  # a page of several tiles
    ],
)
def test_long_rows_beside_short_ones(changes: dict[str, Any]) -> None:
    check(dataclasses.replace(LONG, **changes))


def test_one_long_decode_beside_one_short_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 spans, more than the merge takes at a time; and one item of the other kind, which no spare program would take by chance."""
    monkeypatch.setattr(attention, "MIXED_DECODE_ITEMS", 12)
    check(Case(((1, 370, 0), (2, 3, 0)), num_padding=0))


def test_half_precision_is_as_close_as_its_weights_and_sums_allow() -> None:
    """Products are rounded to float16 once more, as weights: an error of 2^-11 of each, which average out; and the result, of numbers up to 4."""
    arrays = step_arrays(LONG)
    arrays["q"], arrays["pools"] = arrays["q"].astype(np.float16), arrays["pools"].astype(np.float16)
    got = attend(LONG, arrays, np.float16)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got.astype(np.float64), judged(LONG, arrays), rtol=0, atol=4 * 2**-10)


def test_what_is_cut_fits_into_the_launch() -> None:
    """The bound on items is the sum of a launch's programs: with rows of all lengths, every item has one."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows = [(1, int(history), 0) for history in rng.integers(0, 400, 5)] + [(int(rng.integers(2, 30)), 300, 0)]
        check(Case(tuple(rows), num_multiprocessors=int(rng.integers(1, 30)), seed=seed))


def test_slots_past_two_billion_numbers_are_read() -> None:
    """Pages of 2^31 + numbers, int8; their memory is only there where it is touched."""
    head_dim, page_size = 64, 16
    num_slots = (2**31 + 2**20) // head_dim
    k_pages, v_pages = (np.zeros((num_slots, 1, head_dim), np.int8) for _ in range(2))
    k_scales, v_scales = (np.ones((num_slots, 1), np.float32) for _ in range(2))
    v_pages[-2:, 0, :] = [[3], [5]]
    shape = attention.AttentionShape(1, 1, 1, 1, 1, head_dim, page_size, 1.0, None, None, True, True)
    launches = attention.plan_launches(shape, BlockSizes(16, 16, 16, 4, 3), GpuTarget(80, 1))
    table = np.array([[num_slots // page_size - 1]], np.int32)
    rows = np.array([16], np.int32), table, np.array([0, 1], np.int32), np.array(1, np.int32)
    arrays = [np.zeros((1, 1, head_dim), np.float32), k_pages, v_pages, k_scales, v_scales, *rows]
    out = triton_launch.run_interpreted(launches.attend, arrays, attention.output_shapes(shape, launches, jnp.float32))[
        0
    ]
    np.testing.assert_allclose(out, np.full((1, 1, head_dim), (3 + 5) / 16), rtol=1e-6)
