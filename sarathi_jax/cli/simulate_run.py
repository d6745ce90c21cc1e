"""Simulate a run: this engine's own scheduler and loop, or those of another kind of engine, on hardware that need not be here and under a load of one's choice.

Time is a cost model's (docs/plan.md), tokens are not computed. --host sarathi-serve, --pipeline series and --no-overlap make an engine like the one that the paper
measured. A policy that never splits a prompt gets steps that hold the longest request, if --token-budget is less.
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.cli.simulate_options import add_simulated_arguments, read_engine, read_kind, with_goal
from sarathi_jax.cli.simulate_report import (
    bubbles_of,
    deployment_json,
    describe_deployment,
    describe_run,
    run_json,
)
from sarathi_jax.cli.timeline import check_plotting
from sarathi_jax.cli.workload import add_workload_arguments, workload
from sarathi_jax.engine.stalls import StallCounter
from sarathi_jax.gpu_defaults import use_cpu
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.simulation.microbatches import MicrobatchRecorder
from sarathi_jax.simulation.pipelines import Passage
from sarathi_jax.simulation.results import SimulationResult
from sarathi_jax.simulation.run import simulate
from sarathi_jax.simulation.workloads import RequestShape

if TYPE_CHECKING:
    from sarathi_jax.simulation.deployment import Deployment

EXAMPLES = """  sarathi-jax simulate run mistral-7b --request-rate 2.5
  sarathi-jax simulate run falcon-180b --topology 2x4 --mesh stage=2,tensor=4 --lengths arxiv --request-rate 0.2 --json
  sarathi-jax simulate run yi-34b --mesh tensor=2 --policy vllm --request-rate 0.7 --plot vllm.png
  sarathi-jax simulate run llama3-8b --device h100 --lengths chats --request-rate 10 --no-prefix-caching"""
DEFAULT_NUM_REQUESTS = 512


def add_arguments(parser: Parser) -> None:
    add_simulated_arguments(parser)
    add_workload_arguments(parser, lengths="sharegpt", num_requests=DEFAULT_NUM_REQUESTS)
    parser.add_argument(
        "--tbt-slo-ms",
        type=float,
        metavar="X",
        help="most between two tokens, in milliseconds: says how many gaps kept it, and is the goal of the policy slo (default there: 5 times a step of 32"
        " decodes at 4k tokens each)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw latencies as distributions, and the steps over time"
    )


def run(args: argparse.Namespace) -> int:
    use_cpu()  # the GPUs are described, whatever is here
    if args.plot:
        check_plotting(args.plot)
    slo_s = read_slo(args)
    shapes, engine = workload(args), read_engine(args)
    make_policy(engine.policy)
    deployment = with_goal(read_kind(args).deploy(engine, max(shape.num_tokens for shape in shapes)), slo_s)
    result, report = run_reported(deployment, shapes)
    report = {
        **deployment_json(engine.model, deployment),
        "policy": engine.policy,
        "token_budget": deployment.token_budget,
        **report,
        "tbt_slo": None if slo_s is None else slo_json(result, slo_s),
    }
    if args.json:
        print(json.dumps(report))
    else:
        print(describe_deployment(report) + f"policy {engine.policy}, {deployment.token_budget} tokens a step\n")
        print(describe_run(report))
    if args.plot:
        from sarathi_jax.cli.simulate_plot import plot_run

        plot_run(result, args.plot)
    return 0


def read_slo(args: argparse.Namespace) -> float | None:
    """In seconds; None: none was given. Raises: UsageError unless it is a time."""
    slo_ms = args.tbt_slo_ms
    if slo_ms is not None and not 0 < slo_ms < math.inf:
        raise UsageError(f"--tbt-slo-ms must be above 0, got {slo_ms}: it is a time in milliseconds. Use 100.")
    return None if slo_ms is None else slo_ms / 1e3


def slo_json(result: SimulationResult, slo_s: float) -> dict[str, float | None]:
    """share_kept: of the gaps; None if there are none."""
    return {"slo_s": slo_s, "share_kept": float((result.tbt_s <= slo_s).mean()) if result.tbt_s.size else None}


def run_reported(deployment: "Deployment", shapes: list[RequestShape]) -> tuple[SimulationResult, dict[str, object]]:
    """The run, and what came of it as JSON. Raises: RequestError."""
    stalls = StallCounter(deployment.num_stages)
    recorder = MicrobatchRecorder() if deployment.num_stages > 1 else None

    def observe(schedule: Schedule, passage: Passage) -> None:
        stalls.take(schedule)
        if recorder:
            recorder(schedule, passage)

    result = simulate(deployment, shapes, observer=observe)
    bubbles = bubbles_of(deployment, recorder.microbatches) if recorder else None
    return result, run_json(result, stalls.by_request.total(), bubbles)
