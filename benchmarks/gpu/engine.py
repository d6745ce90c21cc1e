"""The whole engine with random weights: its start, tokens a second offline, time that the device idles between steps, and latencies under Poisson load.

Idle share: in a stretch of steps that hold the same decodes and nothing else, the period is the median time from one step's end to the next one's. The device's own
time is that of the stretch's middle step, submitted again and again without waiting for any. What the period has on top is the host's. Poisson load arrives at a
share of the request rate that the engine reached offline.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from benchmarks.gpu.arithmetic import idle_share
from benchmarks.gpu.order import Order, Row, SkippedError, attempt
from benchmarks.gpu.serving import (
    Load,
    compile_events,
    latencies,
    period_s,
    send,
    steady_decodes,
    throughput,
    warm_up,
)
from sarathi_jax import LLM
from sarathi_jax.cli.report import step_mix
from sarathi_jax.engine.executor import Executor
from sarathi_jax.engine.stalls import ScheduleKeeper
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.scheduling.schedule import Schedule

NUM_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """options: the engine's. steady: loads that end in a long stretch of equal steps. num_steps: of the middle one, submitted in a row."""

    options: dict[str, Any]
    offline: Load
    steady: tuple[Load, ...]
    num_steps: int
    load_shares: tuple[float, ...]


FULL = EnginePlan(
    options={"token_budget": 512, "max_num_seqs": 128, "max_model_len": 4096},
    offline=Load(num_requests=256, prompt_tokens=512, output_tokens=128),
    steady=(
        Load(num_requests=1, prompt_tokens=128, output_tokens=256),
        Load(num_requests=128, prompt_tokens=128, output_tokens=384),
    ),
    num_steps=50,
    load_shares=(0.5, 0.8),
)
# Every part's tiny engine has these options: what one part compiled, the next one finds.
TINY = EnginePlan(
    options={"token_budget": 16, "max_num_seqs": 4, "max_model_len": 64},
    offline=Load(num_requests=4, prompt_tokens=8, output_tokens=4),
    steady=(Load(num_requests=4, prompt_tokens=4, output_tokens=24),),
    num_steps=4,
    load_shares=(0.8,),
)


class EngineBench:
    """One engine, whose schedules are recorded."""

    def __init__(self, order: Order) -> None:
        self.plan = TINY if order.is_tiny else FULL
        started_s = time.perf_counter()
        self.llm = LLM(order.model, load_format="dummy", progress=False, **self.plan.options)
        self.start_s = time.perf_counter() - started_s
        self.engine = self.llm.engines[0]
        self.keeper = ScheduleKeeper(self.engine.loop.executor)
        self.engine.loop.executor = self.keeper
        warm_up(self.engine)
        self._offline_requests_per_s: float | None = None
        self._num_loads = 0

    def send(self, load: Load, requests_per_s: float | None = None) -> list[RequestOutput]:
        """Run a load with prompts that no load before had: the prefix cache would have them."""
        self._num_loads += 1
        load = replace(load, seed=self._num_loads)
        return send(self.engine, load, self.llm.model_config.vocab_size, requests_per_s)

    def start(self) -> Row:
        """Seconds from nothing to ready, and the memory it planned."""
        ledger = self.llm.compile_ledger
        return {
            "seconds": self.start_s,
            "num_programs": len(ledger.entries),
            "num_cache_hits": ledger.num_cache_hits,
            "num_kv_tokens": self.llm.memory_plan.num_kv_tokens,
        }

    def offline(self) -> Row:
        found = throughput(self.send(self.plan.offline))
        self._offline_requests_per_s = found["requests_per_s"]
        return found | {"bucket_fill": step_mix(list(self.engine.records)).bucket_fill}

    def poisson(self, share: float) -> Row:
        if self._offline_requests_per_s is None:
            raise SkippedError("the offline run gave no rate to take a share of")
        requests_per_s = share * self._offline_requests_per_s
        outputs = self.send(self.plan.offline, requests_per_s)
        mix = step_mix(list(self.engine.records))
        return {
            "offered_requests_per_s": requests_per_s,
            **throughput(outputs),
            **latencies(outputs),
            "bucket_fill": mix.bucket_fill,
        }

    def idle(self, load: Load) -> Row:
        """Raises: SkippedError if there was no stretch of equal steps."""
        self.keeper.schedules.clear()
        self.send(load)
        stretch = steady_decodes(list(self.engine.records))
        if len(stretch) < 3:
            raise SkippedError("no three decode steps in a row were alike")
        middle = stretch[len(stretch) // 2].step
        schedule = next(each for each in self.keeper.schedules if each.step == middle)
        device_s = back_to_back_s(self.keeper.executor, schedule, self.plan.num_steps)
        return {
            "bucket": stretch[0].bucket.name,
            "num_steps": len(stretch),
            "period_s": period_s(stretch),
            "device_s": device_s,
            "idle_share": idle_share(period_s(stretch), device_s),
        }


def back_to_back_s(executor: Executor, schedule: Schedule, num_steps: int) -> float:
    """Median seconds of a step that is submitted again and again, and waited for at the end alone. Its rows' pages are written over."""
    samples_s: list[float] = []
    for _ in range(1 + NUM_REPEATS):  # the first one warms up
        started_s = time.perf_counter()
        handles = [executor.submit(schedule) for _ in range(num_steps)]
        handles[-1].result()
        samples_s.append((time.perf_counter() - started_s) / num_steps)
    return median(samples_s[1:])


def rows(order: Order) -> Iterator[Row]:
    """The start, the offline run, Poisson loads, idle shares, and what was compiled after ready."""
    bench = EngineBench(order)
    try:
        row: Row = {"kind": "start", "case": "start", "model": order.model_name, **bench.plan.options}
        yield attempt(row, bench.start)
        with compile_events() as events:
            yield attempt({"kind": "offline", "case": "offline"}, bench.offline)
            for share in bench.plan.load_shares:
                row = {"kind": "poisson", "case": f"poisson {share:.0%}"}
                yield attempt(row, partial(bench.poisson, share))
            for load in bench.plan.steady:
                row = {"kind": "idle", "case": f"idle {load.num_requests}"}
                yield attempt(row, partial(bench.idle, load))
        num_compiles = max(bench.llm.compile_ledger.num_after_ready, len(events))
        yield {"kind": "compiles", "case": "compiles after ready", "num_compiles": num_compiles}
    finally:
        bench.llm.close()
