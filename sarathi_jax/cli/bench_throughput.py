"""Run many requests through the engine: tokens per second, latencies, and what its steps were made of.

Lengths are drawn from a distribution or read from a trace (CSV: docs/workloads.md). Without a rate or a trace all requests arrive at once. Prompts are
random token ids, and outputs go on past the end of sequence.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from sarathi_jax.cli.latency_report import latency_report, latency_table
from sarathi_jax.cli.load import run_load
from sarathi_jax.cli.model_options import add_model_arguments, engine_config, running_engine
from sarathi_jax.cli.options import Parser
from sarathi_jax.cli.report import describe_run, run_report
from sarathi_jax.cli.timeline import check_plotting, plot_timeline
from sarathi_jax.cli.workload import add_workload_arguments, workload
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.simulation.token_ids import TokenIds
from sarathi_jax.simulation.workloads import RequestShape

EXAMPLES = """  sarathi-jax bench throughput demo --num-requests 64
  sarathi-jax bench throughput demo --lengths zipf --prompt-tokens 512 --output-tokens 64 --request-rate 20
  sarathi-jax bench throughput demo --trace requests.csv --json --plot steps.png"""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    add_workload_arguments(parser)
    parser.add_argument("--flight-record", type=Path, metavar="FILE", help="write the run's flight record")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the steps: when, and how many tokens")


def run(args: argparse.Namespace) -> int:
    config = engine_config(args)
    shapes = workload(args)
    if args.plot:
        check_plotting(args.plot)
    with running_engine(config) as llm:
        prompts = TokenIds(shapes, llm.model_config.vocab_size, args.workload_seed).all_new_tokens()
        run_load(llm.engine, [RequestShape(0.0, 1, 2)], [[0]])  # the first steps of a process are slower than the rest
        outputs = run_load(llm.engine, shapes, prompts)
        records = list(llm.engine.records)
        if args.flight_record:
            llm.dump_flight_record(args.flight_record)
    report = {"model": config.model, **summarize(outputs), **run_report(records, llm.compile_ledger)}
    print(json.dumps(report) if args.json else f"{describe(report)}\n{describe_run(records, llm.compile_ledger)}")
    if args.plot:
        plot_timeline(records, args.plot)
    return 0


def summarize(outputs: list[RequestOutput]) -> dict[str, Any]:
    """Throughput from the first arrival to the last token, and latencies."""
    metrics = [output.metrics for output in outputs]
    duration_s = max(one.arrival_s + one.e2e_s for one in metrics) - min(one.arrival_s for one in metrics)
    num_prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    num_output_tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
    return {
        "num_requests": len(outputs),
        "num_prompt_tokens": num_prompt_tokens,
        "num_output_tokens": num_output_tokens,
        "duration_s": duration_s,
        "output_tokens_per_s": num_output_tokens / duration_s,
        "total_tokens_per_s": (num_prompt_tokens + num_output_tokens) / duration_s,
        "latencies": latency_report(metrics),
    }


def describe(report: dict[str, Any]) -> str:
    return (
        f"{report['model']}: {report['num_requests']} requests, {report['num_prompt_tokens']} prompt tokens, "
        f"{report['num_output_tokens']} output tokens in {report['duration_s']:.3f} s\n"
        f"{report['output_tokens_per_s']:.1f} output tokens/s, {report['total_tokens_per_s']:.1f} with the prompts'\n"
        f"{latency_table(report['latencies'])}"
    )
