"""Attention checked on one step: NaN wherever no token is, ids of pages that do not exist wherever no page is, and every number against float64.

Bounds. In float32: 1e-5. In 16 bits the products of queries and keys are exact and their sums float32; what is rounded are the weights w, once each, and the result.
With unit roundoff u, sum(w) = 1 and values v, that is at most

    u min(sum(w |v|), 7 sqrt(sum(w^2 v^2))) + u |result|

since roundings fall both ways: by Hoeffding's inequality a sum of n of them is past 7 times the root of their squares once in 10^10 times. An implementation that rounds
less is well within it. A tile that is left out of a thousand, or taken twice, is not.
"""

import zlib
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
)
from benchmarks.gpu.correct_cases import AttentionCase, Span
from benchmarks.gpu.order import Row
from sarathi_jax.kernels import reference, registry
from sarathi_jax.kernels.layer_kv import LayerKV

OPERATION = "ragged_paged_attention"
GARBAGE_PAGES = (-7, 10**9)
NUM_FREE_PAGES = 3
NUM_DEVIATIONS = 7
MAX_LOOPED = (
    1 << 26
)  # pairs x heads x head size that the project's reference, a loop, is given; the rest is left to this module's


class Step(NamedTuple):
    """Arguments of one call, numpy."""

    q: Array
    kv: LayerKV
    kv_lens: Array
    block_tables: Array
    cu_q_lens: Array
    num_decode_rows: Array


class Exact(NamedTuple):
    """f64[T, H, D] each: the result; the mean of |v|, and the root of the sum of squares, under its weights. Zeros for padding."""

    result: Array
    magnitude: Array
    deviation: Array


def checks(cases: Sequence[AttentionCase], device: Any) -> Iterator[Check]:
    """One an implementation of a case."""
    for case in cases:
        use = registry.use_on(device, case.kv_dtype, case.head_dim)
        for name, attention in implementations(OPERATION, use).items():
            row: Row = {"kind": OPERATION, "case": case.name, "shape": case.shape, "implementation": name}
            yield Check(row, partial(prepare, case, attention))


def prepare(case: AttentionCase, attention: Callable[..., Any]) -> Callable[[], Row]:
    """See `Check`."""
    step = make_step(case)
    options = options_of(case) | {"is_decode_only": case.is_decode_only}
    run = compiled(partial(attention, **options), tuple(step))
    exact, by = exact_of(case, step)
    bound, why = bound_of(case, exact)
    num_real = int(step.cu_q_lens[-1])

    def check() -> Row:
        got = run()[:num_real]
        return {"reference": by} | judge(got, exact.result[:num_real], bound[:num_real], why)

    return check


def options_of(case: AttentionCase) -> dict[str, Any]:
    """Of the operation and of its reference alike."""
    scale = case.head_dim**-0.5
    return {"page_size": case.page_size, "scale": scale, "window": case.window, "soft_cap": case.soft_cap}


def bound_of(case: AttentionCase, exact: Exact) -> tuple[Array, str]:
    """f64[T, H, D], and its reason."""
    if case.dtype not in HALF_PRECISION:
        return np.full_like(exact.result, FLOAT32_BOUND), "float32: 1e-5"
    of_weights = np.minimum(exact.magnitude, NUM_DEVIATIONS * exact.deviation)
    unit = UNIT_ROUNDOFFS[case.dtype]
    return unit * (of_weights + np.abs(exact.result)) + FLOAT32_BOUND, "weights and result rounded once each"


def make_step(case: AttentionCase) -> Step:
    """Random numbers, the same for a case every time."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    tables, num_pages = _block_tables(case, rng)
    is_held = np.zeros(num_pages * case.page_size, bool)
    for row, span in enumerate(case.spans):
        first = _first_seen(case, span) // case.page_size * case.page_size
        is_held[_slots(case, tables[row], first, span.kv_len)] = True
    shape = (num_pages * case.page_size, case.num_kv_heads, case.head_dim)
    kv = _int8_kv(rng, shape, is_held) if case.is_int8 else _float_kv(rng, shape, is_held, case.dtype)
    num_padded = case.num_rows - len(case.spans)
    q_lens = [span.q_len for span in case.spans]
    bounds = np.cumsum([0, *q_lens, *[0] * num_padded], dtype=np.int32)
    q = np.full((case.num_tokens, case.num_heads, case.head_dim), np.nan, np.float32)
    q[: bounds[-1]] = rng.standard_normal((bounds[-1], *q.shape[1:]), np.float32)
    kv_lens = np.array([*(span.kv_len for span in case.spans), *[0] * num_padded], np.int32)
    num_decodes = np.array(sum(length == 1 for length in q_lens), np.int32)
    return Step(q.astype(jnp.dtype(case.dtype)), kv, kv_lens, tables, bounds, num_decodes)


def _block_tables(case: AttentionCase, rng: np.random.Generator) -> tuple[Array, int]:
    """i32[S, N], garbage past a row's pages and in those wholly before its window; and how many pages there are."""
    needed = [-(-span.kv_len // case.page_size) for span in case.spans]
    num_pages = sum(needed) + NUM_FREE_PAGES
    ids = rng.permutation(num_pages).astype(np.int32)
    tables = rng.choice(GARBAGE_PAGES, (case.num_rows, case.max_len // case.page_size)).astype(np.int32)
    taken, (first, *_) = 0, case.spans
    for row, span in enumerate(case.spans):
        num_shared = min(span.num_shared, span.history // case.page_size, first.kv_len // case.page_size)
        num_own = needed[row] - num_shared * (row > 0)
        tables[row, needed[row] - num_own : needed[row]] = ids[taken : taken + num_own]
        tables[row, : needed[row] - num_own] = tables[0, : needed[row] - num_own]
        taken += num_own
    for row, span in enumerate(case.spans):
        tables[row, : _first_seen(case, span) // case.page_size] = rng.choice(GARBAGE_PAGES)
    return tables, num_pages


def _first_seen(case: AttentionCase, span: Span) -> int:
    """The first position that any query of the row sees."""
    return 0 if case.window is None else max(span.history - case.window + 1, 0)


def _slots(case: AttentionCase, table: Array, start: int, end: int) -> Array:
    """Of positions start .. end - 1."""
    positions = np.arange(start, end)
    return table[positions // case.page_size] * case.page_size + positions % case.page_size


def _float_kv(rng: np.random.Generator, shape: tuple[int, ...], is_held: Array, dtype: str) -> LayerKV:
    """Normal numbers where a token is, NaN elsewhere."""
    pages = [np.full(shape, np.nan, np.float32) for _ in range(2)]
    for each in pages:
        each[is_held] = rng.standard_normal((int(is_held.sum()), *shape[1:]), np.float32)
    arrays: Any = (each.astype(jnp.dtype(dtype)) for each in pages)
    return LayerKV(*arrays)


def _int8_kv(rng: np.random.Generator, shape: tuple[int, ...], is_held: Array) -> LayerKV:
    """Whole numbers everywhere, and scales that bring them near 1; NaN ones where no token is."""
    k, v = (rng.integers(-127, 128, shape).astype(np.int8) for _ in range(2))
    scales = [rng.uniform(0.5 / 64, 1.5 / 64, shape[:2]).astype(np.float32) for _ in range(2)]
    k_scales, v_scales = (np.where(is_held[:, None], each, np.float32(np.nan)) for each in scales)
    arrays: Any = (k, v, k_scales, v_scales)
    return LayerKV(*arrays)


def exact_of(case: AttentionCase, step: Step) -> tuple[Exact, str]:
    """What is right, and which reference says so: the project's, as long as its loop is short, and else this module's, of which the bounds are always."""
    exact = vectorised(case, step)
    num_pairs = sum(span.q_len * span.kv_len for span in case.spans)
    if num_pairs * case.num_heads * case.head_dim > MAX_LOOPED:
        return exact, "vectorised"
    k_pages, v_pages = (_whole(pages, scales) for pages, scales in zip(step.kv[:2], step.kv[2:], strict=True))
    tables = np.where(
        np.isin(step.block_tables, GARBAGE_PAGES), 0, step.block_tables
    )  # it works slots out before it knows the window
    rows = {"kv_lens": step.kv_lens, "block_tables": tables, "cu_q_lens": step.cu_q_lens}
    looped = reference.ragged_paged_attention(
        q=step.q, k_pages=k_pages, v_pages=v_pages, **rows, **options_of(case), dtype=np.float64
    )
    return exact._replace(result=looped.astype(np.float64)), "kernels.reference"


def _whole(numbers: Any, scales: Any) -> Array:
    """float64, multiplied by its scales."""
    return numbers.astype(np.float64) if scales is None else numbers.astype(np.float64) * scales[..., None]


def vectorised(case: AttentionCase, step: Step) -> Exact:
    """float64, all queries of a row and KV head at once."""
    exact = Exact(*(np.zeros(step.q.shape) for _ in Exact._fields))
    for row, span in enumerate(case.spans):
        start, token = _first_seen(case, span), int(step.cu_q_lens[row])
        slots = _slots(case, step.block_tables[row], start, span.kv_len)
        held = [None if array is None else np.asarray(array)[slots] for array in step.kv]
        keys, values = (_whole(numbers, scales) for numbers, scales in zip(held[:2], held[2:], strict=True))
        queries = step.q[token : token + span.q_len].astype(np.float64)
        positions, q_positions = np.arange(start, span.kv_len), np.arange(span.history, span.kv_len)
        is_seen = positions <= q_positions[:, None]
        if case.window is not None:
            is_seen &= positions > q_positions[:, None] - case.window
        for kv_head in range(case.num_kv_heads):
            heads = slice(kv_head * case.group, (kv_head + 1) * case.group)
            found = _attend(case, queries[:, heads], keys[:, kv_head], values[:, kv_head], is_seen)
            for out, each in zip(exact, found, strict=True):
                out[token : token + span.q_len, heads] = each
    return exact


def _attend(case: AttentionCase, queries: Array, keys: Array, values: Array, is_seen: Array) -> Exact:
    """queries: [M, G, D]; keys, values: [n, D]; is_seen: bool[M, n]."""
    shape = queries.shape
    scores = queries.reshape(-1, shape[-1]) @ keys.T * case.head_dim**-0.5  # [M * G, n]
    if case.soft_cap is not None:
        scores = case.soft_cap * np.tanh(scores / case.soft_cap)
    scores = np.where(np.repeat(is_seen, case.group, axis=0), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    found = weights @ values, weights @ np.abs(values), np.sqrt(weights**2 @ values**2)
    return Exact(*(each.reshape(shape) for each in found))
