"""The operations that write pages, checked: rotated queries and keys and the slots they go to against complex numbers in float64, copied pages bit for bit, and all else untouched.

Bounds. In float32: 1e-5. In 16 bits what is computed in float32 is rounded once. In int8 a number is half a step off at most, after it was rounded so.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.checks import (
    FLOAT32_BOUND,
    HALF_PRECISION,
    UNIT_ROUNDOFFS,
    Array,
    Check,
    compiled,
    implementations,
    judge,
    judge_same,
    worst,
)
from benchmarks.gpu.correct_cases import CopyCase, RopeCase
from benchmarks.gpu.order import Row
from sarathi_jax.kernels import reference, registry
from sarathi_jax.kernels.layer_kv import INT8_MAX, LayerKV

ROPE, COPY = "rope_and_write_kv", "copy_pages"
MAX_POSITION, THETA = 4096, 1e4
UNTOUCHED = "no other slot is written"


class RopeArrays(NamedTuple):
    """As the operation takes them, numpy, but for angles, which are worked out from positions and frequencies (float64)."""

    qkv: Array
    positions: Array
    frequencies: Array
    slot_mapping: Array
    kv: LayerKV


def rope_checks(cases: Sequence[RopeCase], device: Any) -> Iterator[Check]:
    """One an implementation of a case."""
    for case in cases:
        use = registry.use_on(device, case.kv_dtype, case.head_dim)
        for name, function in implementations(ROPE, use).items():
            row: Row = {"kind": ROPE, "case": f"{case.num_real} tokens", "shape": case.shape, "implementation": name}
            yield Check(row, partial(prepare_rope, case, function))


def prepare_rope(case: RopeCase, function: Callable[..., Any]) -> Callable[[], Row]:
    """See `Check`."""
    arrays = make_rope_arrays(case)
    angles = arrays.positions[:, None] * arrays.frequencies[None, :]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    run = compiled(function, (arrays.qkv, cos, sin, arrays.kv, arrays.slot_mapping), donate_argnums=3)
    pages = np.full(arrays.kv.k.shape, np.nan)
    exact = reference.rope_and_write_kv(
        qkv=arrays.qkv, positions=arrays.positions, frequencies=arrays.frequencies, k_pages=pages, v_pages=pages,
        slot_mapping=arrays.slot_mapping,
    )  # fmt: skip
    return lambda: _judge_rope(case, arrays, run(), exact)


def _judge_rope(case: RopeCase, arrays: RopeArrays, got: Any, exact: tuple[Array, Array, Array]) -> Row:
    q, kv = got
    written = arrays.slot_mapping[: case.num_real]
    unit = UNIT_ROUNDOFFS[case.dtype]
    why = "rounded once" if case.dtype in HALF_PRECISION else "float32: 1e-5"
    right_q = exact[0][: case.num_real]
    judged = [judge(q[: case.num_real], right_q, unit * np.abs(right_q) + FLOAT32_BOUND, why)]
    for index, pages in enumerate(exact[1:]):
        right = pages[written]
        bound = unit * np.abs(right) + FLOAT32_BOUND
        numbers = kv[index][written].astype(np.float64)
        if case.is_int8:
            numbers *= kv[index + 2][written][..., None].astype(np.float64)
            step = np.abs(right).max(-1, keepdims=True) / INT8_MAX
            bound, why = bound + step * (0.5 + unit), "half a step of int8"
        judged.append(judge(numbers, right, bound, why))
    for array, before in zip(kv, arrays.kv, strict=True):
        if array is not None and before is not None:
            others = np.delete(array, written, axis=0), np.delete(np.asarray(before), written, axis=0)
            judged.append(judge_same(others[0], others[1], UNTOUCHED))
    return worst(*judged)


def make_rope_arrays(case: RopeCase) -> RopeArrays:
    """Random numbers; NaN for tokens that go nowhere and in all pages."""
    rng, num_slots = np.random.default_rng(case.num_tokens), 2 * case.num_tokens + 32
    qkv = rng.standard_normal((case.num_tokens, case.num_kv_heads, case.group + 2, case.head_dim), np.float32)
    qkv[case.num_real :] = np.nan
    slots = np.full(case.num_tokens, num_slots, np.int32)
    slots[: case.num_real] = rng.permutation(num_slots)[: case.num_real]
    shape = (num_slots, case.num_kv_heads, case.head_dim)
    kv: Any = [np.full(shape, np.nan, jnp.dtype(case.dtype)) for _ in range(2)]
    if case.is_int8:
        kv = [np.full(shape, 77, np.int8) for _ in range(2)] + [np.full(shape[:2], np.nan, np.float32)] * 2
    return RopeArrays(
        qkv.astype(jnp.dtype(case.dtype)),
        rng.integers(0, MAX_POSITION, case.num_tokens).astype(np.int32),
        THETA ** -np.linspace(0, 1, case.head_dim // 2),
        slots,
        LayerKV(*kv),
    )


def copy_checks(cases: Sequence[CopyCase], device: Any) -> Iterator[Check]:
    """One an implementation of a case."""
    for case in cases:
        use = registry.use_on(device, case.dtype, case.head_dim)
        for name, function in implementations(COPY, use).items():
            row: Row = {"kind": COPY, "case": f"{case.num_pairs} pages", "shape": case.shape, "implementation": name}
            yield Check(row, partial(prepare_copy, case, function))


def prepare_copy(case: CopyCase, function: Callable[..., Any]) -> Callable[[], Row]:
    """See `Check`. Pages hold all bits there are, NaN among them. Of several pairs the last one is to be skipped."""
    rng = np.random.default_rng(case.num_pairs)
    ids = rng.permutation(case.num_pages).astype(np.int32)
    sources, targets = ids[: case.num_pairs], ids[case.num_pairs : 2 * case.num_pairs].copy()
    targets[1:][-1:] = case.num_pages
    shape = (case.num_pages * case.page_size, case.num_kv_heads, case.head_dim)
    kv: Any = [_random_bits(rng, shape, case.dtype) for _ in range(2)]
    if case.dtype == "int8":
        kv += [_random_bits(rng, shape[:2], "float32") for _ in range(2)]
    run = compiled(partial(function, page_size=case.page_size), (LayerKV(*kv), sources, targets), donate_argnums=0)
    expected = [
        reference.copy_pages(pages=each, sources=sources, targets=targets, page_size=case.page_size) for each in kv
    ]
    why = "copied, not computed"

    def check() -> Row:
        arrays = [array for array in run() if array is not None]
        return worst(*(judge_same(array, right, why) for array, right in zip(arrays, expected, strict=True)))

    return check


def _random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    itemsize = jnp.dtype(dtype).itemsize
    numbers = rng.integers(0, 256, (*shape[:-1], shape[-1] * itemsize), np.uint8)
    return numbers.view(jnp.dtype(dtype))
