"""What a step costs the host: scheduling it, packing it into one array, and taking in its results. No device, no jax.

Regime: 256 requests run in an engine that may run 256, with 512-token prompts, contexts that grow by a token a step, 16-token pages, a model length of
2,048 and a budget of 512 tokens; a stub gives every row a token at once. As in the overlapped loop, step n + 1 is scheduled before step n is completed.
Three mixes: `greedy` and `sampled` decodes alone, and `hybrid`, where 255 decodes share each step with a 257-token chunk of a prompt.
Metric: seconds a step, median and the middle 90 % over the steps: of the clock for the whole step, whose goal is under 1 ms and whose aim is 0.3 ms, and
of this thread's processor time for the whole and its parts, which a busy machine distorts less.
Not in it: text (detokenizing is a tokenizer's own cost) and the device's dispatch.

    python benchmarks/host_step.py [--steps 1000] [--output benchmarks/results/host_step.json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.execution.packing import Geometry, pack
from sarathi_jax.execution.sampling_row import NUM_SAMPLING_COLUMNS, pack_sampling_row
from sarathi_jax.execution.step_output import read_step_output
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler

NUM_ROWS, PROMPT_TOKENS, TOKEN_BUDGET, PAGE_SIZE, MAX_MODEL_LEN, VOCAB_SIZE = 256, 512, 512, 16, 2048, 32000
MEASURES = ("step", "processor", "schedule", "pack", "complete")
WARM_STEPS = 20


class StubExecutor:
    """Packs a schedule as the device's executor does, and answers with token 1 for every row."""

    def __init__(self, variant: Variant) -> None:
        self._variant = variant
        self._table = BucketTable(TOKEN_BUDGET, NUM_ROWS)
        num_pages = NUM_ROWS * MAX_MODEL_LEN // PAGE_SIZE
        self._geometry = Geometry(num_pages, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE, NUM_ROWS, MAX_MODEL_LEN, VOCAB_SIZE)
        self._sampling_table = np.zeros((NUM_ROWS, NUM_SAMPLING_COLUMNS), np.int32)
        self._words = np.ones(2 * TOKEN_BUDGET, np.int32)

    def pack(self, schedule: Schedule) -> np.ndarray:
        for row in schedule.rows:
            if row.is_first:
                self._sampling_table[row.batch_slot] = pack_sampling_row(row.sampling, row.seed)
        return pack(schedule, self._bucket(schedule), self._geometry, self._sampling_table)

    def result(self, schedule: Schedule) -> StepResult:
        return read_step_output(self._words, schedule, self._bucket(schedule))

    def _bucket(self, schedule: Schedule) -> Any:
        return self._table.choose(
            schedule.num_tokens, len(schedule.rows), is_decode_only=schedule.is_decode_only, variant=self._variant
        )


class Run:
    """One mix, filled up to 256 running rows, and stepped."""

    def __init__(self, mix: str) -> None:
        self._is_hybrid = mix == "hybrid"
        self._sampling = SamplingParams(temperature=1.0 if mix == "sampled" else 0.0, top_p=0.9, max_tokens=None)
        self._executor = StubExecutor(Variant.SAMPLE if mix == "sampled" else Variant.GREEDY)
        self._num_requests = 0
        self._rng = np.random.default_rng(0)
        self._scheduler = Scheduler(
            "sarathi",
            num_pages=NUM_ROWS * MAX_MODEL_LEN // PAGE_SIZE,
            page_size=PAGE_SIZE,
            token_budget=TOKEN_BUDGET,
            max_num_seqs=NUM_ROWS,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB_SIZE,
        )
        for _ in range(NUM_ROWS - self._is_hybrid):
            self._add(PROMPT_TOKENS, MAX_MODEL_LEN - PROMPT_TOKENS)
        self._in_flight: Schedule | None = None
        while any(row.num_tokens > 1 for row in self.step()[1].rows):
            pass  # prompts are read until every request decodes

    def step(self) -> tuple[list[float], Schedule]:
        """One turn of the loop. Returns: seconds by MEASURES, and what was scheduled."""
        if self._is_hybrid and not self._scheduler.num_waiting and self._scheduler.num_running < NUM_ROWS:
            self._add(MAX_MODEL_LEN - 1, 1)
        start_s = time.perf_counter()
        times_s = [time.thread_time()]
        schedule = self._scheduler.schedule(start_s)
        assert schedule is not None, "there is always something to run"
        times_s.append(time.thread_time())
        self._executor.pack(schedule)
        times_s.append(time.thread_time())
        if self._in_flight is not None:
            self._scheduler.complete(self._in_flight, self._executor.result(self._in_flight), start_s)
        times_s.append(time.thread_time())
        self._in_flight = schedule
        return [time.perf_counter() - start_s, times_s[-1] - times_s[0], *np.diff(times_s).tolist()], schedule

    def _add(self, num_prompt_tokens: int, max_tokens: int) -> None:
        self._num_requests += 1
        self._scheduler.add(
            Request(
                str(self._num_requests),
                self._rng.integers(0, VOCAB_SIZE, num_prompt_tokens).tolist(),
                self._sampling,
                arrival_s=0.0,
                seed=self._num_requests,
                max_tokens=max_tokens,
            )
        )


def measure(mix: str, num_steps: int) -> dict[str, Any]:
    """Medians and the middle 90 % of each part and of the whole step, over steps that hold all rows."""
    run = Run(mix)
    samples: list[list[float]] = []
    for step in range(WARM_STEPS + num_steps):
        seconds, schedule = run.step()
        if step >= WARM_STEPS and len(schedule.rows) >= NUM_ROWS - 1:
            samples.append(seconds)
    columns = zip(MEASURES, zip(*samples, strict=True), strict=True)
    return {"num_steps": len(samples)} | {name: spread(list(values)) for name, values in columns}


def spread(values_s: list[float]) -> dict[str, float]:
    low, high = np.percentile(values_s, (5, 95))
    return {"median_s": statistics.median(values_s), "p5_s": float(low), "p95_s": float(high)}


def machine() -> dict[str, Any]:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in cpu_lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": done.stdout.strip() or "unknown",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="steps to time of each mix (default: 1000)")
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    args = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "host_step", "num_rows": NUM_ROWS, **machine(), "mixes": {}}
    for mix in ("greedy", "sampled", "hybrid"):
        report["mixes"][mix] = found = measure(mix, args.steps)
        parts = ", ".join(f"{name} {found[name]['median_s'] * 1e3:.3f}" for name in MEASURES[1:])
        whole = found["step"]
        print(
            f"{mix:<8} {whole['median_s'] * 1e3:.3f} ms a step (90 %: {whole['p5_s'] * 1e3:.3f} to {whole['p95_s'] * 1e3:.3f}): {parts}"
        )
    assert "jax" not in sys.modules, "the host's part of a step needs no jax"
    text = json.dumps(report)
    if args.output:
        args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
