"""Times `ragged_paged_attention` alone: decodes as bytes of KV a second, chunks as causal operations a second, and both in one launch beside each alone.

A chain of calls is one program: each call reads a cache of its own, as a model's layers do, and its queries are the output of the call before, so that none is
dropped, overlapped with the next, or served from the device's cache. Pages are shuffled, as in a pool that has been in use. Operations are counted as in
`benchmarks.gpu.arithmetic`: exactly the causal pairs, 4 D operations each and query head. PyTorch's figures come from `attention_torch`, which ran before.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.arithmetic import mixed_allowance_s
from benchmarks.gpu.attention_cases import AttentionPlan, Case, Decodes, Mixed, Prefill, plan_of
from benchmarks.gpu.checks import attention_obstacle
from benchmarks.gpu.order import Order, Row, SkippedError, attempt
from benchmarks.gpu.timing import Timing, time_chain
from sarathi_jax.kernels import registry
from sarathi_jax.kernels.layer_kv import LayerKV

CACHE_SHARE = 0.5  # of the device's memory
MAX_PLAIN_PAIRS = (
    1 << 22
)  # a query and a key it sees, in one launch that is not the GPU's own kernel: more take seconds


class LaunchInputs(NamedTuple):
    """Arrays of a case that its calls share."""

    q: jax.Array
    kv_lens: jax.Array
    cu_q_lens: jax.Array
    num_decode_rows: jax.Array


class AttentionBench:
    """The caches, and the operation that is timed over them."""

    def __init__(self, plan: AttentionPlan, *, is_tiny: bool) -> None:
        self.plan = plan
        self._is_tiny = is_tiny
        self._device = jax.devices()[0]
        use = registry.use_on(self._device, jnp.dtype(plan.dtype), plan.head_dim)
        self._attention = registry.choose("ragged_paged_attention", use)
        self._rng = np.random.default_rng(0)
        self.obstacle = attention_obstacle(self._device)
        self._programs: dict[bool, Any] = {}
        self._timings: dict[str, Timing] = {}

    @property
    def implementation(self) -> str:
        """The module that the operation is in."""
        function: Any = getattr(self._attention, "func", self._attention)
        return function.__module__.rpartition(".")[2]

    @cached_property
    def caches(self) -> tuple[LayerKV, ...]:
        """Of random numbers."""
        plan = self.plan
        shape = (self.num_slots, plan.num_kv_heads, plan.head_dim)
        normal = jax.jit(lambda key: jax.random.normal(key, shape, plan.dtype))
        keys = jax.random.split(jax.random.key(0), 2 * plan.num_arrays)
        arrays = [jax.block_until_ready(normal(key)) for key in keys]
        return tuple(LayerKV(k, v) for k, v in zip(arrays[::2], arrays[1::2], strict=True))

    @cached_property
    def num_slots(self) -> int:
        """Tokens in each array: a power of two, of which all arrays together take their share of memory at most."""
        plan, slots = self.plan, self.plan.max_slots
        stats = self._device.memory_stats() if self._device.platform != "cpu" else None
        if stats:
            slot_bytes = 2 * plan.num_kv_heads * plan.head_dim * plan.itemsize * plan.num_arrays
            while slots * slot_bytes > stats["bytes_limit"] * CACHE_SHARE:
                slots //= 2
        return slots

    def time(self, case: Case) -> Timing:
        """Seconds of one call; measured once. Raises: SkippedError if its KV does not fit, or the plain kernel would take too long."""
        if self.obstacle and not isinstance(case, Decodes) and case.num_pairs > MAX_PLAIN_PAIRS:
            raise SkippedError(f"too large: {self.obstacle}")
        if case.name not in self._timings:
            self._timings[case.name] = self._time(case)
        return self._timings[case.name]

    def _time(self, case: Case) -> Timing:
        tables = self._block_tables(case)
        inputs = self._inputs(case)
        program = self._program(isinstance(case, Decodes))
        call: Callable[[jax.Array], jax.Array] = lambda q: program(q, self.caches, tables, *inputs[1:])  # noqa: E731
        timing, out = time_chain(call, inputs.q, is_tiny=self._is_tiny)
        if not np.isfinite(np.asarray(out, np.float32)).all():
            raise ArithmeticError("its output is not finite")
        return Timing(*(seconds / len(tables) for seconds in timing))

    def _program(self, is_decode_only: bool) -> Any:
        """The chain, jitted: compiled once a shape."""
        if is_decode_only not in self._programs:
            plan, attention = self.plan, self._attention

            def chain(q: jax.Array, caches: Any, tables: Any, kv_lens: Any, cu_q_lens: Any, num_rows: Any) -> jax.Array:
                for index, table in enumerate(tables):
                    q = attention(
                        q, caches[index % len(caches)], kv_lens, table, cu_q_lens, num_rows,
                        page_size=plan.page_size, scale=plan.head_dim**-0.5, window=None, soft_cap=None,
                        is_decode_only=is_decode_only,
                    )  # fmt: skip
                return q

            self._programs[is_decode_only] = jax.jit(chain, donate_argnums=0)
        return self._programs[is_decode_only]

    def _inputs(self, case: Case) -> LaunchInputs:
        num_rows, (q_lens, kv_lens) = len(case.rows), zip(*case.rows, strict=True)
        num_padded = self._num_padded_rows(case)
        padded_lens, bounds = np.zeros(num_padded, np.int32), np.full(num_padded + 1, sum(q_lens), np.int32)
        padded_lens[:num_rows] = kv_lens
        bounds[: num_rows + 1] = np.cumsum([0, *q_lens])
        shape = (sum(q_lens), self.plan.num_heads, self.plan.head_dim)
        q = jax.random.normal(jax.random.key(2), shape, self.plan.dtype)
        num_decode_rows = np.int32(sum(length == 1 for length in q_lens))
        return LaunchInputs(q, *map(jnp.asarray, (padded_lens, bounds, num_decode_rows)))

    def _block_tables(self, case: Case) -> tuple[jax.Array, ...]:
        """One i32[S, N] a call. Call i reads array i mod num_arrays; calls of one array read pages of their own while there are any."""
        plan, pages_in_array = self.plan, self.num_slots // self.plan.page_size
        row_pages = [-(-kv_len // plan.page_size) for _, kv_len in case.rows]
        regions = pages_in_array // sum(row_pages)
        if not regions:
            raise SkippedError(
                f"{case.num_kv_tokens} tokens of KV are more than the {self.num_slots} there is room for"
            )
        shuffled = self._rng.permutation(pages_in_array).astype(np.int32)
        bounds = np.cumsum([0, *row_pages])
        tables = []
        for index in range(min(plan.num_calls(case), regions * plan.num_arrays)):
            region = index // plan.num_arrays * bounds[-1]
            table = np.zeros((self._num_padded_rows(case), -(-plan.max_kv_len // plan.page_size)), np.int32)
            for row, num_pages in enumerate(row_pages):
                start = region + bounds[row]
                table[row, :num_pages] = shuffled[start : start + num_pages]
            tables.append(jnp.asarray(table))
        return tuple(tables)

    def _num_padded_rows(self, case: Case) -> int:
        return len(case.rows) if isinstance(case, Decodes) else max(len(case.rows), self.plan.num_padded_rows)


def rows(order: Order) -> Iterator[Row]:
    """A row a case."""
    plan = plan_of(is_tiny=order.is_tiny)
    bench = AttentionBench(plan, is_tiny=order.is_tiny)
    for case in (*plan.decodes, *plan.prefills, *plan.mixed):
        row: Row = {"kind": kind_of(case), "case": case.name, "implementation": bench.implementation}
        if isinstance(case, Decodes):
            row |= {"num_rows": case.num_rows, "context": case.context}
        yield attempt(row, partial(_measure, bench, case, order))


def kind_of(case: Case) -> str:
    kinds = {Decodes: "decode attention", Prefill: "prefill attention", Mixed: "mixed attention"}
    return kinds[type(case)]


def _measure(bench: AttentionBench, case: Case, order: Order) -> Row:
    return _mixed(bench, case, order) if isinstance(case, Mixed) else _alone(bench, case, order)


def _alone(bench: AttentionBench, case: Decodes | Prefill, order: Order) -> Row:
    timing = bench.time(case)
    if isinstance(case, Decodes):
        rate = bench.plan.kv_bytes(case) / timing.seconds
        found: Row = {**timing._asdict(), "kv_bytes_per_s": rate}
        ceiling, share = order.ceilings.get("copy_bytes_per_s"), "share_of_copy"
    else:
        rate = bench.plan.flops(case) / timing.seconds
        found = {**timing._asdict(), "flops_per_s": rate}
        ceiling, share = order.ceilings.get("matmul_flops_per_s"), "share_of_matmul"
    found[share] = rate / ceiling if ceiling else None
    theirs = order.beside.get(case.name, {})
    found["torch_flash_s"] = theirs.get("torch_flash_s")
    if order.has_flex:
        found["torch_flex_s"] = theirs.get("torch_flex_s")
    found["flash_over_ours"] = _ratio(found["torch_flash_s"], timing.seconds)
    return found


def _mixed(bench: AttentionBench, case: Mixed, order: Order) -> Row:
    timing = bench.time(case)
    decode_s, prefill_s = bench.time(case.decodes).seconds, bench.time(case.prefill).seconds
    theirs = [order.beside.get(part.name, {}).get("torch_flash_s") for part in (case.decodes, case.prefill)]
    both = [each for each in theirs if each is not None]
    flash_s = sum(both) if len(both) == len(theirs) else None
    allowance_s = mixed_allowance_s(decode_s, prefill_s)
    return {
        **timing._asdict(),
        "decode_alone_s": decode_s,
        "prefill_alone_s": prefill_s,
        "allowance_s": allowance_s,
        "share_of_allowance": timing.seconds / allowance_s,
        "torch_flash_s": flash_s,  # of its two calls, one after the other
        "flash_over_ours": _ratio(flash_s, timing.seconds),
    }


def _ratio(theirs_s: float | None, ours_s: float) -> float | None:
    return None if theirs_s is None else theirs_s / ours_s
