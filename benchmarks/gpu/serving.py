"""Loads on an engine, and what its steps were: shared by the parts that run requests."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import jax

from benchmarks.gpu.order import Row
from sarathi_jax.cli.bench_throughput import summarize
from sarathi_jax.cli.load import run_load
from sarathi_jax.engine.records import StepRecord
from sarathi_jax.engine.replicas import AnyEngine
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.simulation.arrivals import with_poisson_arrivals
from sarathi_jax.simulation.lengths import Synthetic
from sarathi_jax.simulation.token_ids import TokenIds
from sarathi_jax.simulation.workloads import RequestShape

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
LATENCIES = ("ttft_s", "tbt_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests to send: how many, their longest prompt and output, and how lengths are drawn."""

    num_requests: int
    prompt_tokens: int
    output_tokens: int
    lengths: str = "fixed"
    seed: int = 0

    def shapes(self, requests_per_s: float | None = None) -> list[RequestShape]:
        """All at once, or as a Poisson process."""
        synthetic = Synthetic(
            distribution=self.lengths, max_prompt_tokens=self.prompt_tokens, max_output_tokens=self.output_tokens
        )
        shapes = synthetic.draw(self.num_requests, self.seed)
        return shapes if requests_per_s is None else with_poisson_arrivals(shapes, requests_per_s, self.seed)


def send(engine: AnyEngine, load: Load, vocab_size: int, requests_per_s: float | None = None) -> list[RequestOutput]:
    """Run a load to its end."""
    shapes = load.shapes(requests_per_s)
    return run_load(engine, shapes, TokenIds(shapes, vocab_size, load.seed).all_new_tokens())


def warm_up(engine: AnyEngine) -> None:
    """The first steps of a process are slower than the rest."""
    run_load(engine, [RequestShape(0.0, 1, 2)], [[0]])


def throughput(outputs: Sequence[RequestOutput]) -> Row:
    """Tokens and requests a second, from the first arrival to the last token."""
    summary = summarize(list(outputs))
    return {
        "num_requests": summary["num_requests"],
        "output_tokens_per_s": summary["output_tokens_per_s"],
        "total_tokens_per_s": summary["total_tokens_per_s"],
        "requests_per_s": summary["num_requests"] / summary["duration_s"],
    }


def latencies(outputs: Sequence[RequestOutput]) -> Row:
    """Percentiles of TTFT and TBT: `ttft_p50_s` and so on."""
    found = summarize(list(outputs))["latencies"]
    return {
        f"{name.removesuffix('_s')}_{rank}_s": value
        for name in LATENCIES
        for rank, value in (found[name] or {}).items()
    }


def steady_decodes(records: Sequence[StepRecord]) -> list[StepRecord]:
    """The longest stretch of successive steps that hold the same number of decodes, and nothing else, in one bucket."""
    best: list[StepRecord] = []
    current: list[StepRecord] = []
    for record in records:
        if record.num_prefill_tokens:
            current = []
            continue
        is_same = bool(current) and (current[-1].bucket.name, current[-1].num_rows) == (
            record.bucket.name,
            record.num_rows,
        )
        current = [*current, record] if is_same else [record]
        best = max(best, current, key=len)
    return best


def period_s(stretch: Sequence[StepRecord]) -> float:
    """Median seconds from the end of one step to the end of the next. Needs two steps."""
    return median(later.end_s - earlier.end_s for earlier, later in pairwise(stretch))


@contextmanager
def compile_events() -> Iterator[list[str]]:
    """The programs that jax compiles while the block runs, whoever asks for them."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILE_EVENT:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
