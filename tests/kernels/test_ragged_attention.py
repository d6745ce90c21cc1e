"""The contract of ragged paged attention: every implementation, on steps with NaN wherever no token is, against float64.

Broken by hand, once each, and caught: the causal mask, the window's edge (with and without it), a window's first page, values left out by weight only,
the last partial tile, the rescaling of what was summed, the soft cap, a chunk's padding, the start and end of its blocks, the head a wide query is
read from, the order of decode rows, and rows past the last one not dropped.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.kernels import ragged_attention_xla, reference, registry
from sarathi_jax.kernels.layer_kv import LayerKV

Array = np.ndarray[Any, np.dtype[Any]]
MAX_HISTORY = 300  # tokens before a chunk, in what is drawn
GARBAGE_PAGES = [-7, 10**9]  # what a block table holds past a row's pages


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one program is compiled for. Contents vary, shapes are few: compiling is what takes time here."""

    num_heads: int = 3
    num_kv_heads: int = 1
    head_dim: int = 16
    page_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    is_decode_only: bool = False
    num_tokens: int = 96
    num_rows: int = 10

    @property
    def options(self) -> dict[str, Any]:
        scale = self.head_dim**-0.5
        return {"page_size": self.page_size, "scale": scale, "window": self.window, "soft_cap": self.soft_cap}

    @property
    def num_blocks(self) -> int:
        return -(-(MAX_HISTORY + self.num_tokens) // self.page_size)

    @property
    def num_pages(self) -> int:
        return self.num_rows * self.num_blocks + 1


@dataclass(frozen=True)
class Row:
    """q_len tokens after `history` others; its first pages are the first row's, `num_shared` of them where both have them behind them."""

    q_len: int
    history: int
    num_shared: int = 0


SHAPES = {
    "one head": Shape(num_heads=1, head_dim=12, page_size=8),
    "group of 3, the demo model": Shape(head_dim=64),
    "group of 3, decodes": Shape(head_dim=64, is_decode_only=True, num_tokens=12, num_rows=12),
    "group of 8, window": Shape(num_heads=8, head_dim=24, page_size=32, window=40),
    "no group, window of 1": Shape(num_heads=4, num_kv_heads=4, head_dim=80, page_size=8, window=1),
    "two KV heads, soft cap": Shape(num_heads=6, num_kv_heads=2, head_dim=128, soft_cap=5.0),
    "four KV heads, decodes, window, soft cap": Shape(
        num_heads=12, num_kv_heads=4, head_dim=20, page_size=8, window=33, soft_cap=5.0, is_decode_only=True
    ),
}


def build_step(shape: Shape, rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """The array arguments of one call, by name."""
    rng = np.random.default_rng(seed)
    size, padding = shape.page_size, shape.num_rows - len(rows)
    lens = [row.history + row.q_len for row in rows]
    ids = iter(rng.permutation(shape.num_pages))
    tables = rng.choice(GARBAGE_PAGES, (shape.num_rows, shape.num_blocks)).astype(np.int32)
    pools = np.full((2, shape.num_pages * size, shape.num_kv_heads, shape.head_dim), np.nan, np.float32)
    for i, row in enumerate(rows):
        num_shared = min(row.num_shared, row.history // size, rows[0].history // size) if i else 0
        tables[i, :num_shared] = tables[0, :num_shared]
        tables[i, num_shared : -(-lens[i] // size)] = [next(ids) for _ in range(num_shared, -(-lens[i] // size))]
        own = np.arange(num_shared * size, lens[i])
        slots = tables[i, own // size] * size + own % size
        pools[:, slots] = rng.standard_normal((2, len(own), *pools.shape[2:]))
    cu_q_lens = np.cumsum([0, *(row.q_len for row in rows), *[0] * padding], dtype=np.int32)
    q = np.full((shape.num_tokens, shape.num_heads, shape.head_dim), np.nan, np.float32)
    q[: cu_q_lens[-1]] = rng.standard_normal((cu_q_lens[-1], *q.shape[1:]))
    num_decodes = next((i for i, row in enumerate(rows) if row.q_len > 1), len(rows))
    return {
        "q": q,
        "kv": LayerKV(pools[0], pools[1]),
        "kv_lens": np.array([*lens, *[0] * padding], np.int32),
        "block_tables": tables,
        "cu_q_lens": cu_q_lens,
        "num_decode_rows": np.array(num_decodes, np.int32),
    }


@st.composite
def steps(draw: st.DrawFn, shape: Shape) -> dict[str, Any]:
    """Decodes first, then chunks until the tokens are used up; the rest of rows and tokens is padding."""
    rows, num_left = [], shape.num_tokens
    num_decodes = draw(st.integers(int(shape.is_decode_only), min(shape.num_rows, shape.num_tokens)))
    for i in range(num_decodes if shape.is_decode_only else draw(st.integers(max(1, num_decodes), shape.num_rows))):
        longest = 1 if i < num_decodes else min(num_left, draw(st.sampled_from([3, 20, 96])))
        if num_left == 0:
            break
        rows.append(
            Row(draw(st.integers(1, longest)), draw(st.integers(0, MAX_HISTORY)), draw(st.sampled_from([0, 0, 2, 9])))
        )
        num_left -= rows[-1].q_len
    return build_step(shape, rows, draw(st.integers(0, 2**16)))


@functools.cache
def compiled(name: str, shape: Shape) -> Callable[..., jax.Array]:
    use = registry.use_on(jax.devices()[0], np.float32, shape.head_dim)
    function = registry.choose("ragged_paged_attention", use, implementation=name)
    return jax.jit(functools.partial(function, **shape.options, is_decode_only=shape.is_decode_only))


def run(name: str, shape: Shape, step: dict[str, Any]) -> Array:
    """[tokens of rows, H, D]: what padding holds is nobody's business."""
    return np.asarray(compiled(name, shape)(**step))[: step["cu_q_lens"][-1]]


def judged(shape: Shape, step: dict[str, Any]) -> Array:
    """f64[tokens of rows, H, D]."""
    kv = {"k_pages": step["kv"].k, "v_pages": step["kv"].v}
    arrays = {name: array for name, array in step.items() if name not in ("num_decode_rows", "kv")}
    whole = reference.ragged_paged_attention(**arrays, **kv, **shape.options, dtype=np.float64)
    return whole[: step["cu_q_lens"][-1]]


def check_mixes(name: str, implementation: str, data: st.DataObject) -> None:
    shape = SHAPES[name]
    step = data.draw(steps(shape))
    np.testing.assert_allclose(run(implementation, shape, step), judged(shape, step), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=25)
@given(data=st.data())
def test_any_mix_is_as_in_float64(name: str, data: st.DataObject) -> None:
    check_mixes(name, "xla", data)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=4)  # a second each; `test_attention_kernel` draws more, of smaller steps
@given(data=st.data())
def test_any_mix_is_as_in_float64_by_the_gpus_kernel(name: str, data: st.DataObject) -> None:
    check_mixes(name, "triton-interpreter", data)


def test_equal_keys_average_the_values_that_are_seen(implementation: str) -> None:
    shape = Shape(num_heads=1, head_dim=16, window=3)
    step = build_step(shape, [Row(6, 0)], seed=0)
    slots = step["block_tables"][0, 0] * 16 + np.arange(6)
    step["kv"].k[slots] = 1
    step["kv"].v[slots] = np.arange(6).reshape(6, 1, 1)
    np.testing.assert_allclose(run(implementation, shape, step)[:, 0, 0], [0, 0.5, 1, 2, 3, 4], atol=1e-6)


def test_pages_wholly_before_the_window_are_not_read(implementation: str) -> None:
    shape = Shape(window=20)
    step = build_step(shape, [Row(1, 100), Row(40, 100)], seed=1)
    expected = judged(shape, step)
    step["block_tables"][:, :5] = GARBAGE_PAGES[1]  # of 0..79; the first token sees 81 and later
    np.testing.assert_allclose(run(implementation, shape, step), expected, rtol=0, atol=1e-5)


def test_decodes_that_are_not_counted_are_served_as_chunks(implementation: str) -> None:
    shape = SHAPES["group of 3, the demo model"]
    step = build_step(shape, [Row(1, 100), Row(1, 0), Row(1, 17), Row(70, 20)], seed=2)
    step["num_decode_rows"] = np.array(1, np.int32)
    np.testing.assert_allclose(run(implementation, shape, step), judged(shape, step), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_pages_are_computed_in_float32_by_xla(dtype: Any) -> None:
    shape = SHAPES["two KV heads, soft cap"]
    step = build_step(shape, [Row(1, 200), Row(50, 30)], seed=3)
    step["q"], step["kv"] = step["q"].astype(dtype), LayerKV(*(pages.astype(dtype) for pages in step["kv"][:2]))
    got = run("xla", shape, step)
    assert got.dtype == dtype
    # Only the result is rounded: half a unit in the last place of numbers up to 4.
    np.testing.assert_allclose(
        got.astype(np.float64), judged(shape, step), rtol=0, atol=2 * float(jnp.finfo(dtype).eps)
    )


def test_int8_pages_are_multiplied_by_their_scales(implementation: str) -> None:
    shape = SHAPES["two KV heads, soft cap"]
    step = build_step(shape, [Row(1, 200), Row(1, 15), Row(50, 30)], seed=8)
    pages = [np.nan_to_num(pages) for pages in step["kv"][:2]]
    scales = [np.abs(each).max(-1) / np.float32(127) for each in pages]
    whole = [np.round(each / np.maximum(scale, 1e-9)[..., None]) for each, scale in zip(pages, scales, strict=True)]
    is_free = [scale == 0 for scale in scales]  # where no token is, the scale is garbage
    garbled = [np.where(free, np.nan, scale).astype(np.float32) for free, scale in zip(is_free, scales, strict=True)]
    exact = LayerKV(*(each * scale[..., None] for each, scale in zip(whole, scales, strict=True)))
    expected = judged(shape, step | {"kv": exact})
    step["kv"] = LayerKV(*(each.astype(np.int8) for each in whole), *garbled)
    np.testing.assert_allclose(run(implementation, shape, step), expected, rtol=0, atol=1e-5)


def test_more_rows_than_tokens(implementation: str) -> None:
    shape = Shape(num_tokens=8, num_rows=10)
    step = build_step(shape, [Row(1, 9), Row(1, 250), Row(3, 3)], seed=4)
    np.testing.assert_allclose(run(implementation, shape, step), judged(shape, step), rtol=0, atol=1e-5)


def test_every_row_a_decode(implementation: str) -> None:
    shape = SHAPES["group of 3, decodes"]
    step = build_step(
        shape, [Row(1, history) for history in (0, 300, 15, 16, 17, 127, 128, 129, 1, 40, 200, 63)], seed=6
    )
    np.testing.assert_allclose(run(implementation, shape, step), judged(shape, step), rtol=0, atol=1e-5)


def test_a_step_of_padding_alone_looks_nothing_up(implementation: str) -> None:
    """Its table is garbage: who followed it would leave memory. What comes out may be anything."""
    shape = SHAPES["group of 3, the demo model"]
    got = np.asarray(compiled(implementation, shape)(**build_step(shape, [], seed=5)))
    assert got.shape == (shape.num_tokens, shape.num_heads, shape.head_dim)


@pytest.mark.parametrize("is_decode_only", [True, False])
def test_memory_does_not_grow_with_the_block_table(is_decode_only: bool) -> None:
    """`xla` only: 16,384 tokens a row would be 3 MB per row in scores alone."""
    shape = Shape(is_decode_only=is_decode_only, num_tokens=64, num_rows=64)

    def temp_bytes(num_blocks: int) -> int:
        pages: Any = jax.ShapeDtypeStruct((2048 * 16, 1, 16), jnp.float32)
        tables = jax.ShapeDtypeStruct((64, num_blocks), jnp.int32)
        q, lens, cu = jax.ShapeDtypeStruct((64, 3, 16), jnp.float32), *_int_arrays(64, 65)
        options = shape.options | {"is_decode_only": is_decode_only}
        function = functools.partial(ragged_attention_xla.ragged_paged_attention, **options)
        lowered = jax.jit(function).lower(q, LayerKV(pages, pages), lens, tables, cu, *_int_arrays(None))
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temp_bytes(1024) - temp_bytes(32) <= 64 * 1024 * 4  # at most a copy of the table itself


def _int_arrays(*sizes: int | None) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(() if size is None else (size,), jnp.int32) for size in sizes]
