"""What a step costs the host: scheduling it, packing it into one array, and taking in its results; all but the device.

Regime: the engine with its overlapped loop and the real executor, whose compiled programs are replaced by stubs that answer with random tokens at once;
256 requests run where 256 may, with 512-token prompts, contexts that grow by a token a step, 16-token pages, a model length of 2,048 and a
budget of 512 tokens. Four mixes: `greedy` and `sampled` decodes alone; `hybrid`, where 255 decodes share each step with a 257-token chunk of a prompt; and
`text`, which is `greedy` with the demo model's tokenizer, so that every token becomes text (the others are of token ids).
Metric: seconds a step, median and the middle 90 % over the steps: of the clock for the whole step, whose goal is under 1 ms and whose aim is 0.3 ms, and
of this thread's processor time for the whole and its parts, which a busy machine distorts less. `parts` is scheduling, packing and completing together; what
the whole has on top is making events (and text) of tokens, and the step's record.

    python -m benchmarks.host_step [--steps 1000] [--output benchmarks/results/host_step.json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from sarathi_jax.clock import WallClock
from sarathi_jax.engine.engine import Engine
from sarathi_jax.execution.buckets import BucketTable
from sarathi_jax.execution.device_runner import LocalRunner
from sarathi_jax.execution.executor import JaxExecutor, JaxStepHandle
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.execution.programs import Programs
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.token_output import TokenOutput
from sarathi_jax.text.tokenizer import Tokenizer

NUM_ROWS, PROMPT_TOKENS, TOKEN_BUDGET, PAGE_SIZE, MAX_MODEL_LEN, VOCAB_SIZE = 256, 512, 512, 16, 2048, 1000
DEMO = Path(__file__).parent.parent / "sarathi_jax" / "assets" / "demo"
MIXES = ("greedy", "sampled", "hybrid", "text")
PARTS = ("schedule", "pack", "complete")
MEASURES = ("step", "processor", "parts", *PARTS)
WARM_STEPS = 20


class Stopwatch:
    """Adds up this thread's processor time by part; read and cleared once a step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def add(self, part: str, start_s: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + time.thread_time() - start_s

    def take(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds


class TimedScheduler(Scheduler):
    """The scheduler, with its two calls a step timed."""

    stopwatch: Stopwatch
    last: Schedule

    def schedule(self, now_s: float) -> Schedule | None:
        start_s = time.thread_time()
        found = super().schedule(now_s)
        self.stopwatch.add("schedule", start_s)
        self.last = found or self.last
        return found

    def complete(self, schedule: Schedule, result: StepResult, now_s: float) -> Sequence[TokenOutput]:
        start_s = time.thread_time()
        outputs = super().complete(schedule, result, now_s)
        self.stopwatch.add("complete", start_s)
        return outputs


class Answer:
    """What a step sends back, there at once: a token id a row, then a one for each row, as its logits are finite."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    def copy_to_host_async(self) -> None:
        pass

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._words


class StubPrograms:
    """Stands where the compiled programs are: every step answers with random tokens at once."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._words = np.ones((64, 2, TOKEN_BUDGET), np.int32)
        self._words[:, 0] = rng.integers(10, VOCAB_SIZE, (64, TOKEN_BUDGET))  # 0 to 9 may be special tokens
        self._num_steps = 0

    def programs(self, table: BucketTable) -> Programs:
        steps = {bucket: partial(self._step, bucket.num_rows) for bucket in table.buckets}
        return Programs(steps, make_state=lambda: (), set_slot=lambda slots, packed: slots)

    def _step(self, num_rows: int, params: object, state: object, packed: np.ndarray) -> tuple[object, Answer]:
        del params, packed
        self._num_steps += 1
        return state, Answer(self._words[self._num_steps % 64, :, :num_rows].reshape(-1))


class TimedExecutor(JaxExecutor):
    """The executor, timed."""

    stopwatch: Stopwatch

    def submit(self, schedule: Schedule) -> JaxStepHandle:
        start_s = time.thread_time()
        handle = super().submit(schedule)
        self.stopwatch.add("pack", start_s)
        return handle


def make_executor(stopwatch: Stopwatch) -> TimedExecutor:
    num_blocks = MAX_MODEL_LEN // PAGE_SIZE
    geometry = Geometry(NUM_ROWS * num_blocks, PAGE_SIZE, num_blocks, NUM_ROWS, MAX_MODEL_LEN, VOCAB_SIZE)
    table = BucketTable(TOKEN_BUDGET, NUM_ROWS)
    executor = TimedExecutor(LocalRunner(StubPrograms().programs(table), ()), table, geometry, ())
    executor.stopwatch = stopwatch
    return executor


class Run:
    """One mix, filled up to 256 running rows, and stepped."""

    def __init__(self, mix: str) -> None:
        self._is_hybrid = mix == "hybrid"
        self._temperature = 1.0 if mix == "sampled" else 0.0
        self._rng = np.random.default_rng(0)
        self._stopwatch = Stopwatch()
        self._scheduler = TimedScheduler(
            "sarathi",
            num_pages=NUM_ROWS * MAX_MODEL_LEN // PAGE_SIZE,
            page_size=PAGE_SIZE,
            token_budget=TOKEN_BUDGET,
            max_num_seqs=NUM_ROWS,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB_SIZE,
        )
        self._scheduler.stopwatch = self._stopwatch
        self._engine = Engine(
            self._scheduler,
            make_executor(self._stopwatch),
            WallClock(),
            is_overlapped=True,
            tokenizer=Tokenizer.from_folder(DEMO) if mix == "text" else None,
        )
        for _ in range(NUM_ROWS - self._is_hybrid):
            self._add(PROMPT_TOKENS, MAX_MODEL_LEN - PROMPT_TOKENS)
        self.step()
        while any(row.num_tokens > 1 for row in self._scheduler.last.rows):
            self.step()  # until every prompt is read

    def step(self) -> tuple[dict[str, float], int]:
        """One turn of the loop. Returns: seconds by MEASURES, and the step's rows."""
        if self._is_hybrid and not self._scheduler.num_waiting and self._scheduler.num_running < NUM_ROWS:
            self._add(MAX_MODEL_LEN - 1, 1)
        start_s, processor_start_s = time.perf_counter(), time.thread_time()
        self._engine.step()
        processor_s, step_s = time.thread_time() - processor_start_s, time.perf_counter() - start_s
        parts_s = self._stopwatch.take()
        seconds = {"step": step_s, "processor": processor_s, "parts": sum(parts_s.values()), **parts_s}
        return seconds, len(self._scheduler.last.rows)

    def _add(self, num_prompt_tokens: int, max_tokens: int) -> None:
        prompt = self._rng.integers(0, VOCAB_SIZE, num_prompt_tokens).tolist()
        self._engine.add_request(
            prompt, SamplingParams(max_tokens=max_tokens, temperature=self._temperature, top_p=0.9)
        )


def measure(mix: str, num_steps: int) -> dict[str, Any]:
    """Medians and the middle 90 % of each measure, over steps that hold all rows."""
    run = Run(mix)
    samples: list[dict[str, float]] = []
    for step in range(WARM_STEPS + num_steps):
        seconds, num_rows = run.step()
        if step >= WARM_STEPS and num_rows >= NUM_ROWS - 1:
            samples.append(seconds)
    return {"num_steps": len(samples)} | {name: spread([sample[name] for sample in samples]) for name in MEASURES}


def spread(values_s: list[float]) -> dict[str, float]:
    low, high = np.percentile(values_s, (5, 95))
    return {"median_s": statistics.median(values_s), "p5_s": float(low), "p95_s": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="steps to time of each mix (default: 1000)")
    parser.add_argument("--mix", action="append", choices=MIXES, help="only this one; may be repeated")
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    args = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "host_step", "num_rows": NUM_ROWS, **machine("numpy"), "mixes": {}}
    print(", ".join(f"{name} {value}" for name, value in report.items() if name != "mixes"))
    for mix in args.mix or MIXES:
        report["mixes"][mix] = found = measure(mix, args.steps)
        parts = ", ".join(f"{name} {found[name]['median_s'] * 1e3:.3f}" for name in MEASURES[1:])
        low, high = (found["step"][name] * 1e3 for name in ("p5_s", "p95_s"))
        print(f"{mix:<8} {found['step']['median_s'] * 1e3:.3f} ms a step (90 %: {low:.3f} to {high:.3f}): {parts}")
    text = json.dumps(report)
    if args.output:
        args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
