"""The `slo` policy, which nothing is tuned for, beside `sarathi` with every fixed budget, in the sixteen cells of Sarathi-Serve's evaluation, simulated.

    python -m benchmarks.slo_policy [--num-requests N] [--cells yi-34b/sharegpt,...] [--processes N] [--output FILE.json]

Of each cell (a model on its GPUs, lengths, an SLO): the capacity of eight fixed budgets and of `slo` as docs/metrics.md defines it; then all under the same load, 90 %
and 100 % of the best fixed budget's capacity, since the criterion of capacity alone can be gamed by serving short prompts first, and 90 % with other random draws, which
say how much of a difference is chance. After the cells: two classes of requests mixed, and conversations with and without a prefix cache. The engine is Sarathi-Serve's
in all of them: its host code, plain loop, stages in series.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sarathi_jax.lab.paper_setup import SLOS, deploy, load, models, paper, paper_budget, shape_of, tbt_slo_s
from sarathi_jax.scheduling.service_levels import ServiceLevel, service_levels
from sarathi_jax.simulation.arrivals import at_rate, with_arrivals
from sarathi_jax.simulation.capacity import Criterion, judged, run_trial
from sarathi_jax.simulation.chats import Chats
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.lengths import FITTED
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.processes import in_processes
from sarathi_jax.simulation.rate_search import find_capacity
from sarathi_jax.simulation.results import SimulationResult
from sarathi_jax.simulation.run import simulate
from sarathi_jax.simulation.self_profile import slo_maker
from sarathi_jax.simulation.workloads import RequestShape, with_classes

BUDGETS = (256, 384, 512, 768, 1024, 1280, 1536, 2048)
LARGEST_BUDGET = BUDGETS[-1]
OTHER_SEEDS = range(10, 16)  # nothing was chosen on these


@dataclass(frozen=True, slots=True)
class Cell:
    """A model on its GPUs, lengths, and an SLO. shape: the model's, which spares the processes that measure it jax."""

    model: str
    lengths: str
    slo: str
    shape: ModelShape

    @property
    def name(self) -> str:
        return f"{self.model}/{self.lengths}/{self.slo}"

    @property
    def tbt_slo_s(self) -> float:
        return tbt_slo_s(self.model, self.slo)

    def sarathi(self, token_budget: int | None = None, **options: Any) -> Deployment:
        """With a fixed budget; None: the paper's."""
        budget = paper_budget(self.model, self.slo) if token_budget is None else token_budget
        return deploy(self.model, self.lengths, "sarathi", budget, shape=self.shape, **options)

    def slo_policy(self, levels: Mapping[str, ServiceLevel] | None = None) -> Deployment:
        """With steps that were profiled before it was started, as `bench profile` would."""
        base = self.sarathi(LARGEST_BUDGET)
        return replace(base, policy=slo_maker(base, levels or service_levels(self.tbt_slo_s)))


def cells() -> list[Cell]:
    return [Cell(model, lengths, slo, shape_of(model)) for model in models() for lengths in FITTED for slo in SLOS]


def measure_cell(cell: Cell, num_requests: int) -> dict[str, Any]:
    """One row. Fixed budgets are searched for capacity from the paper's on outwards, each from the one before."""
    shapes, criterion = load(cell.lengths, num_requests), Criterion(tbt_slo_s=cell.tbt_slo_s)
    started_s, capacities = time.perf_counter(), dict[str, float]()
    guess = paper()["models"][cell.model]["guess_per_s"] * (1.0 if cell.lengths == "sharegpt" else 0.35)
    budget_of_paper = paper_budget(cell.model, cell.slo)
    for budget in sorted(BUDGETS, key=lambda each: abs(each - budget_of_paper)):
        capacities[str(budget)] = capacity(cell.sarathi(budget), shapes, criterion, guess)
        guess = capacities[str(budget)] or guess
    best_budget = max(capacities, key=lambda each: capacities[each])
    best = capacities[best_budget]
    slo = cell.slo_policy()
    row: dict[str, Any] = {
        "cell": cell.name,
        "paper_budget": budget_of_paper,
        "capacities": {key: capacities[key] for key in map(str, BUDGETS)},
        "best_budget": int(best_budget),
        "slo_capacity": capacity(slo, shapes, criterion, best),
    }
    engines = {"paper": cell.sarathi(), "best": cell.sarathi(int(best_budget)), "slo": slo}
    for share in (0.9, 1.0):
        rate = share * best
        runs = {name: simulate(engine, at_rate(shapes, rate)) for name, engine in engines.items()}
        row[f"at {share:.0%} of {best:.3f}/s"] = {
            name: asdict(judged(run, rate, criterion)) for name, run in runs.items()
        }
    row["other draws, slo over the paper's budget"] = [
        over_paper(engines["paper"], slo, load(cell.lengths, num_requests, seed), 0.9 * best, criterion)
        for seed in OTHER_SEEDS
    ]
    return row | {"seconds": time.perf_counter() - started_s}


def over_paper(
    fixed: Deployment, slo: Deployment, shapes: Sequence[RequestShape], rate: float, criterion: Criterion
) -> dict[str, float]:
    """First tokens of the two under the same load: how many times as late."""
    one, other = (judged(simulate(each, at_rate(shapes, rate)), rate, criterion) for each in (slo, fixed))
    return {name: getattr(one, name) / getattr(other, name) for name in ("median_ttft_s", "p99_ttft_s")}


def capacity(engine: Deployment, shapes: Sequence[RequestShape], criterion: Criterion, guess: float) -> float:
    found = find_capacity(lambda rate: run_trial(engine, shapes, rate, criterion), guess=guess, step=1.1)
    return found.requests_per_s


# ---- two classes, and conversations


MIXED_SLOS = {"interactive": (0.1, 2.0), "batch": (0.5, 60.0)}  # seconds: TBT, TTFT
MIXED_RATES = (2.4, 2.8, 3.2, 3.6, 4.0, 4.8)
ROUNDS_PER_REQUEST = 8  # of conversations, for each request of other runs


def measure_mixed(policy: str, num_requests: int) -> dict[str, Any]:
    """Mistral-7B, half of the requests interactive and half batch: the best goodput over rates. A fixed budget has to be the one for the tighter SLO."""
    cell = cells()[0]
    shapes = with_classes(load(cell.lengths, num_requests), {"interactive": 0.5, "batch": 0.5}, seed=0)
    levels = {name: ServiceLevel(tbt_slo_s=tbt, ttft_slo_s=ttft) for name, (tbt, ttft) in MIXED_SLOS.items()}
    engine = cell.slo_policy(levels) if policy == "slo" else cell.sarathi()
    found = {rate: goodput(simulate(engine, at_rate(shapes, rate)), shapes) for rate in MIXED_RATES}
    return {"mixed": policy, "goodput_by_rate": found, "best_goodput": max(found.values())}


def goodput(result: SimulationResult, shapes: Sequence[RequestShape]) -> float:
    """Requests a second of the arrivals' span whose first token was in time and at most 1 % of whose gaps were too long, each by its own class's SLOs."""
    good = 0
    for shape, request in zip(shapes, result.requests, strict=True):
        tbt_slo_s, ttft_slo_s = MIXED_SLOS[shape.slo_class]
        is_late = (
            (np.diff(request.token_times_s) > tbt_slo_s).mean() > 0.01 if len(request.token_times_s) > 1 else False
        )
        good += request.ttft_s <= ttft_slo_s and not is_late
    return good / (result.requests[-1].arrival_s - result.requests[0].arrival_s)


def measure_chats(cell: Cell, num_requests: int) -> dict[str, Any]:
    """Mistral-7B, conversations whose rounds repeat what was said, with and without a prefix cache; the paper counts each round as a fresh prompt. A capacity is of
    rounds a second. A round waits for the answer before it, so few conversations fit even if they all begin at once: there are enough for a rate to matter."""
    shapes = with_arrivals(Chats().draw(ROUNDS_PER_REQUEST * num_requests, seed=0), 1.0, seed=0)
    criterion, guess = Criterion(tbt_slo_s=cell.tbt_slo_s), 2.5
    found: dict[str, Any] = {}
    for name, is_prefix_caching in (("without", False), ("with prefix cache", True)):
        guess = capacity(cell.sarathi(is_prefix_caching=is_prefix_caching), shapes, criterion, guess)
        found[name] = guess
    return {
        "chats": "capacity",
        "num_rounds": len(shapes),
        **found,
        "gain": found["with prefix cache"] / found["without"],
    }


def measure(task: tuple[str, Any, int]) -> dict[str, Any]:
    kind, what, num_requests = task
    function: Any = {"cell": measure_cell, "mixed": measure_mixed, "chats": measure_chats}[kind]
    return function(what, num_requests)


def main() -> None:
    """Command line: see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-requests", type=int, default=1024, metavar="N", help="of each run (default: 1024)")
    parser.add_argument("--cells", help="names, separated by commas (default: all, and what comes after them)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="side by side (default: 2)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="keep the rows there, from the first on")
    args = parser.parse_args()
    names = None if args.cells is None else args.cells.split(",")
    tasks: list[tuple[str, Any, int]] = [
        ("cell", cell, args.num_requests) for cell in cells() if names is None or cell.name in names
    ]
    if names is None:
        tasks += [("mixed", policy, args.num_requests) for policy in ("sarathi", "slo")]
        tasks.append(("chats", cells()[0], args.num_requests))
    rows: list[dict[str, Any]] = []

    def keep(number: int, row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.output:
            args.output.write_text(json.dumps({"num_requests": args.num_requests, "rows": rows}, indent=1) + "\n")

    in_processes(measure, tasks, num_processes=args.processes, on_done=keep)


if __name__ == "__main__":
    main()
