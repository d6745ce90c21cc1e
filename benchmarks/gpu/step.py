"""Times the engine's compiled step, dispatched back to back over a packed array made by hand, beside the least time that it could take.

Decodes: `context` tokens each, one program a batch size. Their floor is reading every weight once (of the embedding table only the rows that are looked up, unless
it is the head too) and the KV of every row once, at the bandwidth that `ceilings` measured. Prefills: one chunk without history; their floor is the products'
and the attention's operations at the measured rate of products. Nothing comes from the host but the dispatch: the packed array lies on the device.

Sampling: the same decodes, with temperature, top-k and top-p for every row, beside the greedy step, one measured right after the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.arithmetic import decode_floor_s, kv_bytes, prefill_flops
from benchmarks.gpu.compiled_model import CompiledModel, compile_model, kv_itemsize
from benchmarks.gpu.order import Order, Row, SkippedError, attempt
from benchmarks.gpu.timing import time_chain
from sarathi_jax.config import EngineConfig
from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.execution.packing import SlotTables, pack
from sarathi_jax.execution.sampling_row import pack_sampling_row
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, ignore_eos=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Which steps. Sizes have to be sizes of buckets. sampled: batch sizes that are drawn as well."""

    batch_sizes: tuple[int, ...]
    sampled: tuple[int, ...]
    context: int
    chunks: tuple[int, ...]
    max_model_len: int
    memory_fraction: float


FULL = StepPlan(
    batch_sizes=(1, 4, 16, 32, 64, 128, 256),
    sampled=(1, 64),
    context=1024,
    chunks=(512, 2048),
    max_model_len=4096,
    memory_fraction=0.8,
)
TINY = StepPlan(batch_sizes=(1, 4), sampled=(4,), context=16, chunks=(16,), max_model_len=64, memory_fraction=0.9)


class StepBench:
    """One model's programs and its device state, which every step takes over from the one before."""

    def __init__(self, model: str, plan: StepPlan, *, is_tiny: bool) -> None:
        self.plan = plan
        self._is_tiny = is_tiny
        config = EngineConfig(
            model=model,
            load_format="dummy",
            token_budget=max(*plan.chunks, *plan.batch_sizes),
            max_num_seqs=max(plan.batch_sizes),
            max_model_len=plan.max_model_len,
            memory_fraction=plan.memory_fraction,
        )
        self.compiled: CompiledModel = compile_model(
            config, partial(_is_wanted, plan), (Variant.GREEDY, Variant.SAMPLE)
        )
        self.geometry = self.compiled.programs.geometry
        self._rng = np.random.default_rng(0)
        self._slots = SlotTables(self.geometry)
        self._slots.sampling[:] = [pack_sampling_row(DRAWN, seed) for seed in range(self.geometry.max_num_seqs)]
        self._state = _with_random_pages(self.compiled.programs.programs.make_state())

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        config = self.compiled.config
        return config.num_layers * kv_bytes(1, config.num_kv_heads, config.head_dim, kv_itemsize(self._state))

    def time(self, lengths: Sequence[tuple[int, int]], variant: Variant = Variant.GREEDY) -> Row:
        """Time a step of rows (tokens in the cache before it, tokens of the step). Raises: SkippedError if they don't fit."""
        schedule = self._schedule(lengths)
        bucket = self.compiled.programs.table.choose(
            schedule.num_tokens, len(lengths), is_decode_only=schedule.is_decode_only, variant=variant
        )
        packed = jax.device_put(pack(schedule, bucket, self.geometry, self._slots), self.compiled.device)
        step, params = self.compiled.programs.programs.steps[bucket], self.compiled.params
        timing, self._state = time_chain(
            lambda state: step(params, state, packed)[0], self._state, is_tiny=self._is_tiny
        )
        return {"bucket": bucket.name, **timing._asdict()}

    def _schedule(self, lengths: Sequence[tuple[int, int]]) -> Schedule:
        page_size, rows, first_page = self.geometry.page_size, list[ScheduledRow](), 0
        pages = self._rng.permutation(self.geometry.num_pages).astype(np.int32)
        for slot, (start, num_tokens) in enumerate(lengths):
            num_pages = -(-(start + num_tokens) // page_size)
            table = pages[first_page : first_page + num_pages]
            first_page += num_pages
            token_ids = self._rng.integers(0, self.geometry.vocab_size, num_tokens).tolist()
            rows.append(_row(slot, start, token_ids, table))
        if first_page > self.geometry.num_pages:
            raise SkippedError(
                f"{first_page} pages of KV are more than the {self.geometry.num_pages} there is room for"
            )
        num_decodes = sum(num_tokens == 1 for _, num_tokens in lengths)
        return Schedule(0, tuple(rows), sum(num_tokens for _, num_tokens in lengths), num_decodes)


def rows(order: Order) -> Iterator[Row]:
    """A row a step of the order's model."""
    plan = TINY if order.is_tiny else FULL
    bench = StepBench(order.model, plan, is_tiny=order.is_tiny)
    for batch in plan.batch_sizes:
        row: Row = {"kind": "decode step", "case": f"{order.model_name} {batch}x{plan.context}", "batch": batch}
        yield attempt(row, partial(_decode, bench, order, batch))
    for batch in plan.sampled:
        row = {"kind": "sample step", "case": f"{order.model_name} {batch}x{plan.context}", "batch": batch}
        yield attempt(row, partial(_sampled, bench, batch))
    for chunk in plan.chunks:
        row = {"kind": "prefill step", "case": f"{order.model_name} {chunk}", "chunk": chunk}
        yield attempt(row, partial(_prefill, bench, order, chunk))


def _decode(bench: StepBench, order: Order, batch: int) -> Row:
    found = bench.time([(bench.plan.context - 1, 1)] * batch)
    num_kv_bytes = batch * bench.plan.context * bench.kv_token_bytes
    found |= {"num_weight_bytes": bench.compiled.weight_bytes_read, "num_kv_bytes": num_kv_bytes}
    ceiling = order.ceilings.get("copy_bytes_per_s")
    floor_s = decode_floor_s(bench.compiled.weight_bytes_read, num_kv_bytes, ceiling) if ceiling else None
    return found | _against(floor_s, found["seconds"])


def _sampled(bench: StepBench, batch: int) -> Row:
    """What drawing costs beyond the largest logit."""
    lengths = [(bench.plan.context - 1, 1)] * batch
    greedy_s = bench.time(lengths)["seconds"]
    found = bench.time(lengths, Variant.SAMPLE)
    return found | {"greedy_s": greedy_s, "difference_us": (found["seconds"] - greedy_s) * 1e6}


def _prefill(bench: StepBench, order: Order, chunk: int) -> Row:
    found = bench.time([(0, chunk)])
    num_flops = prefill_flops(bench.compiled.config, chunk, 0)
    ceiling = order.ceilings.get("matmul_flops_per_s")
    found |= {"num_flops": num_flops, "flops_per_s": num_flops / found["seconds"]}
    return found | _against(num_flops / ceiling if ceiling else None, found["seconds"])


def _row(slot: int, start: int, token_ids: list[int], block_table: np.ndarray) -> ScheduledRow:
    num_tokens = start + len(token_ids)
    return ScheduledRow(
        request_id=f"row-{slot}",
        start=start,
        num_tokens=len(token_ids),
        token_ids=token_ids,
        block_table=block_table,
        batch_slot=slot,
        does_sample=True,
        is_first=False,
        context_token_ids=(),
        num_prompt_tokens=num_tokens,
        num_output_tokens=0,
        sampling=GREEDY,
        seed=0,
    )


def _against(floor_s: float | None, seconds: float) -> Row:
    return {"floor_s": floor_s, "share_of_floor": None if floor_s is None else floor_s / seconds}


def _is_wanted(plan: StepPlan, bucket: Bucket) -> bool:
    if bucket.variant is Variant.SAMPLE:
        return bucket.is_decode_only and bucket.num_tokens in plan.sampled
    return bucket.num_tokens in (plan.batch_sizes if bucket.is_decode_only else plan.chunks)


def _with_random_pages(state: Any) -> Any:
    """The state with random numbers in its pages, array by array in place: a device under a power limit reads zeros faster."""

    def refill(key: jax.Array, old: jax.Array) -> jax.Array:
        return jax.random.normal(key, old.shape, old.dtype)

    sharding = state.layers[0].k.sharding
    fill = jax.jit(refill, donate_argnums=1, keep_unused=True, out_shardings=sharding)
    keys = iter(jax.random.split(jax.random.key(0), 2 * len(state.layers)))
    return state._replace(layers=jax.tree.map(lambda array: fill(next(keys), array), state.layers))
