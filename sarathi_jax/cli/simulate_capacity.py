"""Find capacities: the highest rate at which P99 TBT keeps the SLO and the median scheduling delay 2 s, as Sarathi-Serve defines it (docs/metrics.md).

Every combination of the policies, token budgets and SLOs that are given is searched, side by side in processes. The criterion alone can be gamed by serving the
short ones first, so P99 TTFT, backlog drift and unfinished requests stand beside it. Without --tbt-slo-ms there are two: 5 and 25 times a step of 32 decodes at 4k
tokens each, the paper's strict and relaxed ones.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.cli.simulate_options import (
    add_simulated_arguments,
    derived_slos_s,
    read_engine,
    read_kind,
    with_goal,
)
from sarathi_jax.cli.simulate_report import capacity_json, capacity_table, deployment_json, describe_deployment
from sarathi_jax.cli.timeline import check_plotting
from sarathi_jax.cli.workload import add_workload_arguments, workload
from sarathi_jax.gpu_defaults import use_cpu
from sarathi_jax.scheduling.policies import POLICIES, make_policy
from sarathi_jax.simulation.capacity import Criterion, search_capacity
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.processes import in_processes, num_cores
from sarathi_jax.simulation.rate_search import GRANULARITY, Capacity, Trial
from sarathi_jax.simulation.workloads import RequestShape

EXAMPLES = """  sarathi-jax simulate capacity mistral-7b --tbt-slo-ms 100 --num-requests 500
  sarathi-jax simulate capacity yi-34b --mesh tensor=2 --policy sarathi,vllm --tbt-slo-ms 200,1000 --plot capacity.png
  sarathi-jax simulate capacity mistral-7b --token-budget 256,512,1024,2048 --tbt-slo-ms 100 --json"""
OWN_FIELDS = ("policy", "token_budget")  # lists here
DEFAULT_NUM_REQUESTS = 2048


class Cell(NamedTuple):
    """One search. policy: its name."""

    policy: str
    deployment: Deployment
    shapes: Sequence[RequestShape]
    criterion: Criterion
    granularity: float

    def search(self, on_trial: Callable[[Trial], None] | None = None) -> Capacity:
        return search_capacity(
            self.deployment, self.shapes, self.criterion, granularity=self.granularity, on_trial=on_trial
        )


def add_arguments(parser: Parser) -> None:
    add_simulated_arguments(parser, skip=OWN_FIELDS)
    group = parser.add_argument_group("cells")
    group.add_argument(
        "--policy", default="sarathi", metavar="P,P,...", help=f"of {', '.join(POLICIES)} (default: sarathi)"
    )
    group.add_argument(
        "--token-budget",
        type=numbers(int),
        default=[512],
        metavar="N,N,...",
        help="most tokens of a step, of policies that split prompts; the others' hold the longest request (default: 512)",
    )
    group.add_argument(
        "--tbt-slo-ms", type=numbers(float), metavar="X,X,...", help="most that P99 TBT may be, in milliseconds"
    )
    group.add_argument(
        "--max-median-delay-s",
        type=float,
        default=2.0,
        metavar="X",
        help="most that the median scheduling delay may be (default: 2)",
    )
    group.add_argument(
        "--granularity",
        type=float,
        default=GRANULARITY,
        metavar="X",
        help=f"how far above the capacity the rate that fails may be, as a share of it (default: {GRANULARITY})",
    )
    add_workload_arguments(parser, lengths="sharegpt", num_requests=DEFAULT_NUM_REQUESTS, has_rate=False)
    output = parser.add_argument_group("what to do")
    output.add_argument(
        "--processes", type=int, default=num_cores(), metavar="N", help="searches at a time (default: one a core)"
    )
    output.add_argument("--json", action="store_true", help="print one JSON object, with all trials")
    output.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the capacities, and latencies against the load"
    )


def run(args: argparse.Namespace) -> int:
    use_cpu()  # the GPUs are described, whatever is here
    if args.plot:
        check_plotting(args.plot)
    args.request_rate = 1.0  # scaled in each trial
    cells = read_cells(args)
    found = search_all(cells, args.processes)
    reports = [
        capacity_json(cell.policy, cell.deployment.token_budget, cell.criterion, capacity)
        for cell, capacity in zip(cells, found, strict=True)
    ]
    first = cells[0]
    report = {
        **deployment_json(read_engine(args, skip=OWN_FIELDS).model, first.deployment),
        "num_requests": len(first.shapes),
        "max_median_delay_s": first.criterion.max_median_delay_s,
        "cells": reports,
    }
    print(json.dumps(report) if args.json else f"{describe_deployment(report)}\n{capacity_table(reports)}")
    if args.plot:
        from sarathi_jax.cli.simulate_plot import plot_capacities

        plot_capacities(reports, args.plot)
    return 0


def read_cells(args: argparse.Namespace) -> list[Cell]:
    """What is asked, cell by cell: those that split prompts once a budget, the others once. Raises: ConfigError; CapacityError; ModelError."""
    if not 0 < args.granularity <= 1:
        raise UsageError(
            f"--granularity must be above 0 and at most 1, got {args.granularity}: it is a share. Use {GRANULARITY}."
        )
    shapes, kind = workload(args), read_kind(args)
    if any(shape.after is not None for shape in shapes) and args.arrivals == "own":
        raise UsageError("--arrivals own needs requests that wait for nobody, got chats: leave it out.")
    longest = max(shape.num_tokens for shape in shapes)
    deployments: dict[tuple[str, int], Deployment] = {}
    for policy, budget in product(dict.fromkeys(args.policy.split(",")), dict.fromkeys(args.token_budget)):
        make_policy(policy)
        deployment = kind.deploy(read_engine(args, skip=OWN_FIELDS, policy=policy, token_budget=budget), longest)
        deployments.setdefault((policy, deployment.token_budget), deployment)
    some = next(iter(deployments.values()))
    slos_s = [each / 1e3 for each in args.tbt_slo_ms] if args.tbt_slo_ms else derived_slos_s(some.cost_model)
    criteria = [Criterion(tbt_slo_s=slo_s, max_median_delay_s=args.max_median_delay_s) for slo_s in slos_s]
    return [
        Cell(policy, with_goal(deployment, criterion.tbt_slo_s), shapes, criterion, args.granularity)
        for (policy, _), deployment in deployments.items()
        for criterion in criteria
    ]


def search_all(cells: Sequence[Cell], num_processes: int) -> list[Capacity]:
    """With a bar: of cells, or where one is searched at a time, of trials."""
    num_processes = min(num_processes, len(cells))
    if num_processes != 1:
        with tqdm(total=len(cells), desc="capacity", unit="search", disable=not sys.stderr.isatty()) as bar:
            return in_processes(Cell.search, cells, num_processes=num_processes, on_done=lambda *_: bar.update())
    with tqdm(desc="capacity", unit="trial", disable=not sys.stderr.isatty()) as bar:

        def tell(trial: Trial) -> None:
            bar.set_postfix_str(f"{trial.requests_per_s:.3f} req/s {'holds' if trial.does_hold else 'does not hold'}")
            bar.update()

        return [cell.search(tell) for cell in cells]


def numbers[Number: (int, float)](read: type[Number]) -> Callable[[str], list[Number]]:
    """Reads numbers with commas between them."""

    def read_list(text: str) -> list[Number]:
        return [read(part) for part in text.split(",")]

    read_list.__name__ = f"list of {read.__name__}"  # argparse says "invalid list of int value: '...'"
    return read_list
