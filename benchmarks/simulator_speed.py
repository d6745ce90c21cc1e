"""How fast the simulator is: simulated requests a second of one core.

Regime: engines of the paper's evaluation (`sarathi_jax.lab.paper_setup`) at the strict goal, each at its capacity as it stands in benchmarks/results/paper.json; requests that arrive as a
Poisson process, in one process. A run is all of it, from the first request's arrival to the last token's time: every step is planned and taken in by the scheduler that serves.
Metric: requests over the clock's seconds, and over this process' processor time; median and range of the runs after one that warms up. `us_per_step` is the clock's. What the interpreter
is stands beside them, since builds of CPython differ by a quarter.

    python -m benchmarks.simulator_speed [--runs 9] [--num-requests 2048] [--output benchmarks/results/simulator_speed.json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from sarathi_jax.lab.paper_setup import STRICT, deploy, load, paper_budget
from sarathi_jax.simulation.arrivals import at_rate
from sarathi_jax.simulation.run import simulate

CAPACITIES = Path(__file__).parent / "results" / "paper.json"
ENGINES = list(product(("mistral-7b", "yi-34b"), ("sharegpt", "arxiv"), ("sarathi", "vllm", "orca")))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="that count, of each engine (default: 9)")
    parser.add_argument("--num-requests", type=int, default=2048, help="in each run (default: 2048)")
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    args = parser.parse_args(arguments)
    report: dict[str, Any] = {
        "benchmark": "simulator_speed",
        **machine("numpy"),
        "python_compiler": platform.python_compiler(),
        "num_requests": args.num_requests,
        "engines": {},
    }
    for model, lengths, policy in ENGINES:
        name = f"{model}/{lengths}/{policy}"
        found = report["engines"][name] = measure(model, lengths, policy, args.num_requests, args.runs)
        print(
            f"{name}: {found['requests_per_s']['median']:.0f} requests/s, {found['us_per_step']:.0f} us a step of {found['rows_per_step']:.1f} rows",
            flush=True,
        )
    print(json.dumps(report))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(model: str, lengths: str, policy: str, num_requests: int, num_runs: int) -> dict[str, Any]:
    """One engine."""
    rate = capacity(model, lengths, policy)
    engine = deploy(model, lengths, policy, paper_budget(model, STRICT) if policy == "sarathi" else None)
    shapes = at_rate(load(lengths, num_requests), rate)
    clock, processor = list[float](), list[float]()
    result = simulate(engine, shapes)
    for _ in range(num_runs):
        start_s, processor_s = time.perf_counter(), time.process_time()
        result = simulate(engine, shapes)
        clock.append(num_requests / (time.perf_counter() - start_s))
        processor.append(num_requests / (time.process_time() - processor_s))
    num_steps = len(result.steps)
    return {
        "arrivals_per_s": rate,
        "requests_per_s": spread(clock),
        "requests_per_processor_s": spread(processor),
        "num_steps": num_steps,
        "rows_per_step": round(statistics.fmean(step.num_rows for step in result.steps), 1),
        "us_per_step": round(num_requests / statistics.median(clock) / num_steps * 1e6, 1),
    }


def capacity(model: str, lengths: str, policy: str) -> float:
    """Requests a second, as it was searched for."""
    rows = json.loads(CAPACITIES.read_text(encoding="utf-8"))["capacities"]
    wanted = {"model": model, "lengths": lengths, "slo": STRICT, "label": policy}
    return next(row["requests_per_s"] for row in rows if wanted.items() <= row.items())


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values)), "min": round(min(values)), "max": round(max(values))}


if __name__ == "__main__":
    main()
