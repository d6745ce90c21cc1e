"""Make a recorded run again, in the simulator: the same calls into a new scheduler, whose decisions must be the same, byte for byte.

Also says how far the steps' times are from what a step-time model says of them. Exit code 1: the decisions differ, and the first difference is printed.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sarathi_jax.cli.options import Parser
from sarathi_jax.scheduling.step_profile import read_profile

if TYPE_CHECKING:
    from sarathi_jax.simulation.replay import Replay

EXAMPLES = """  sarathi-jax simulate replay run.jsonl.gz
  sarathi-jax simulate replay run.jsonl.gz --profile steps.json --json"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("record", metavar="RECORD", type=Path, help="what a flight recorder wrote")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="of `bench profile`: what step times are predicted from (default: the first half of the run)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    # Here: it takes as long as all of the rest.
    from sarathi_jax.engine.flight_record import read_record
    from sarathi_jax.simulation.replay import replay
    from sarathi_jax.simulation.replay_times import StepTimer, prediction_errors

    record, timer = read_record(args.record), StepTimer()
    profile = read_profile(args.profile) if args.profile else None
    found = replay(record, timer.observe)
    errors = prediction_errors(record, timer.steps, profile)
    report: dict[str, Any] = {"record": str(args.record), "model": record.header.model, "policy": record.header.policy}
    report |= {"is_identical": found.difference is None, **asdict(found)}
    report["step_times"] = None if errors is None else asdict(errors)
    print(json.dumps(report) if args.json else describe(report, found))
    return 0 if found.difference is None else 1


def describe(report: dict[str, Any], found: "Replay") -> str:
    lines = [
        f"{report['record']}: {report['model'] or 'an engine'} under {report['policy']}, {found.num_requests} requests, {found.num_steps} steps,"
        f" {found.num_preemptions} preemptions, {found.num_prefix_hit_tokens} tokens from the prefix cache"
    ]
    difference = found.difference
    if difference is None:
        lines.append(f"decisions   identical: {found.num_bytes} bytes, SHA-256 {found.decisions[:16]}")
    else:
        where = f"event {difference.event}" + (f", step {difference.step}" if difference.step is not None else "")
        lines += [
            f"decisions   differ at {where}: {difference.what}",
            f"  recorded  {difference.recorded}",
            f"  replayed  {difference.replayed}",
        ]
    times = report["step_times"]
    if times is None:
        lines.append("step times  too few steps to predict any")
    else:
        lines.append(
            f"step times  {times['median_measured_s'] * 1e3:.2f} ms measured, {times['median_predicted_s'] * 1e3:.2f} ms predicted (medians of"
            f" {times['num_steps']} steps); error {times['median']:.1%} median, {times['p90']:.1%} at the 90th percentile, from {times['source']}"
        )
    return "\n".join(lines)
