"""Report versions, devices and settings, and name what stands in the way of running here; with MODEL, whether that model is whole and runs.

A model's folder, weights (by their headers), chat template, tokenizer, vocabulary and ends of sequence are checked, its memory is planned as an engine with default options would,
and it generates 3 tokens. One line a check: ok, warn or FAIL. The report can be pasted into an issue: it names no folder of yours. Exit code 1 if anything it
needs is missing or too old, or a check fails.
"""

import argparse
import json
from typing import Any

from sarathi_jax.cli.doctor_check import FAIL, without_paths
from sarathi_jax.cli.doctor_environment import examine
from sarathi_jax.cli.options import Parser

EXAMPLES = """  sarathi-jax doctor
  sarathi-jax doctor ./my-model
  sarathi-jax doctor demo --json"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="demo, a folder, or a hub id, to check, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    report = examine()
    if args.model is not None:
        report |= examine_model(args.model, can_run=not report["problems"])
        report["problems"] += [f"{each['name']}: {each['text']}" for each in report["checks"] if each["state"] == FAIL]
    report = without_paths(report, args.model)
    if args.json:
        print(json.dumps(report))
    else:
        print_report(report)
    return 1 if report["problems"] else 0


def examine_model(name: str, *, can_run: bool) -> dict[str, Any]:
    """What the report says of a model, as JSON. can_run: whether jax is fit to run it; otherwise that is left out."""
    from sarathi_jax.cli.doctor_model import check_files  # here: `doctor` has to say so where what it needs is missing
    from sarathi_jax.cli.doctor_text import check_text

    checks, source = check_files(name)
    if source is not None and source.folder is not None:
        checks += check_text(source.folder, source.config.vocab_size)
        if can_run and all(check.state != FAIL for check in checks):
            from sarathi_jax.cli.doctor_engine import check_engine

            checks += check_engine(source)
    return {"model": name, "checks": [check._asdict() for check in checks]}


def print_report(report: dict[str, Any]) -> None:
    print(f"sarathi-jax {report['sarathi_jax']}, Python {report['python']}, {report['platform']}")
    print(f"{report['num_cpus']} CPUs, {report['free_disk_bytes'] / 2**30:.1f} GiB free here")
    for name, found in report["versions"].items():
        print(f"  {name:<20}{found or '-'}")
    for device in report["devices"]:
        memory = f", {device['memory_bytes'] / 2**30:.1f} GiB" if device["memory_bytes"] else ""
        print(f"device {device['id']}: {device['platform']} {device['kind']}{memory}")
    for name, state in report["kernels"].items():
        print(f"kernels {name}: {state}")
    for name, value in report["environment"].items():
        print(f"{name}={value}")
    print("".join(f"hint: {text}\n" for text in report["hints"]), end="")
    if "model" in report:
        print(f"model {report['model']}")
    for check in report.get("checks", ()):
        print(f"  {check['state']:<5}{check['name']:<20}{check['text']}")
    print("\n".join(f"problem: {text}" for text in report["problems"]) or "nothing stands in the way")
