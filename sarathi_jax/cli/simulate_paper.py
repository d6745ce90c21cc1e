"""Run Sarathi-Serve's evaluation in the simulator: the production scheduler on the paper's GPUs, models, lengths and latency goals, beside what the paper says.

Searches the capacity of three schedulers in sixteen cells, then runs the paper's ablation, its chunked prompts, its decodes with prompts among them and its pipeline's
bubbles, and checks the paper's statements. docs/paper.md explains where figures differ.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

from tqdm import tqdm

from sarathi_jax import __version__
from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.cli.paper_plots import check_folder, plot_paper
from sarathi_jax.errors import ConfigError
from sarathi_jax.lab.paper_grid import Row, check_table, grid_table, grid_tasks
from sarathi_jax.lab.paper_report import PaperReport, run_paper
from sarathi_jax.lab.paper_setup import models
from sarathi_jax.simulation.processes import num_cores

EXAMPLES = """  sarathi-jax simulate paper
  sarathi-jax simulate paper --num-requests 256 --json
  sarathi-jax simulate paper --plot figures"""
DEFAULT_NUM_REQUESTS = 2048  # the paper's


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--num-requests",
        type=int,
        default=DEFAULT_NUM_REQUESTS,
        metavar="N",
        help=f"of each trial of a capacity search (default: {DEFAULT_NUM_REQUESTS}, as the paper's)",
    )
    parser.add_argument(
        "--models", metavar="M,M,...", help=f"capacities of these alone (default: {','.join(models())})"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="searches side by side (default: one a core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the figures there")


def run(args: argparse.Namespace) -> int:
    if args.num_requests < 1:
        raise ConfigError(f"--num-requests must be at least 1, got {args.num_requests}: pass a positive number.")
    if args.plot:
        check_folder(args.plot)
    only_models = _read_models(args.models)
    started_s = time.perf_counter()
    tasks = grid_tasks(args.num_requests, only_models)
    with tqdm(total=len(tasks), desc="capacities", unit="search", disable=not sys.stderr.isatty()) as bar:

        def done(number: int, row: Row) -> None:
            bar.set_postfix_str(f"{row.model} {row.lengths} {row.slo} {row.label}")
            bar.update()

        num_processes = num_cores() if args.processes is None else args.processes
        report = run_paper(tasks, num_processes=num_processes, on_done=done)
    seconds, cpu_seconds = time.perf_counter() - started_s, _cpu_seconds()
    if args.json:
        print(
            json.dumps(
                {
                    "version": __version__,
                    "num_requests": args.num_requests,
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                    **report.as_json(),
                }
            )
        )
    else:
        print(describe(report))
        print(
            f"\n{len(tasks)} searches of {args.num_requests} requests a trial in {seconds:.0f} s, {cpu_seconds:.0f} s of CPU"
        )
    if args.plot:
        plot_paper(report, args.plot)
    return 0


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _read_models(text: str | None) -> list[str] | None:
    names = None if text is None else text.split(",")
    if unknown := [name for name in names or () if name not in models()]:
        raise UsageError(f"--models must be of {', '.join(models())}, got {', '.join(unknown)}: choose from these.")
    return names


def describe(report: PaperReport) -> str:
    """Tables, one below the other."""
    ablation = [f"{'':<24}{'lengths':>10}{'TTFT P50':>10}{'paper':>8}{'TBT P99':>9}{'paper':>8}"]
    ablation += [
        f"{row.scheduler:<24}{row.lengths:>10}{row.median_ttft_s:>10.2f}{row.measured_ttft_s:>8.2f}{row.p99_tbt_s:>9.2f}{row.measured_tbt_s:>8.2f}"
        for row in report.ablation
    ]
    chunks = [f"{'prompt':>8}{'chunks of':>11}{'longer by':>11}{'paper':>8}{'KV reads':>10}"]
    chunks += [
        f"{row.num_prompt_tokens:>8}{row.num_chunk_tokens:>11}{row.overhead:>11.1%}{row.measured_overhead:>8.1%}{row.kv_read_ratio:>10.1f}"
        for row in report.chunks
    ]
    bubbles = [f"{'':<10}{'batch':>6}{'bubble of a request':>21}{'busy':>8}{'PB1':>8}{'PB2':>8}{'PB3':>8}"]
    bubbles += [
        f"{row.policy:<10}{row.max_num_seqs:>6}{row.median_bubble_s:>20.2f}s{row.busy_share:>8.1%}{row.prefill_size_share:>8.1%}{row.prefill_decode_share:>8.1%}{row.decode_context_share:>8.1%}"
        for row in report.bubbles
    ]
    parts = {
        "capacity, requests a second": grid_table(report.grid),
        "ablation: Yi-34B, seconds": "\n".join(ablation),
        "chunked prompts: Yi-34B": "\n".join(chunks),
        "pipeline: Falcon-180B, all requests at once": "\n".join(bubbles),
        "the paper's statements": check_table(report.checks),
    }
    return "\n\n".join(f"== {name}\n{text}" for name, text in parts.items())
