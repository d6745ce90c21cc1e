"""Time one batch of equal requests, repeatedly: how long the engine takes when it has nothing else to do.

Prompts are random token ids, outputs go on past the end of sequence, so that every repeat does the same work. A batch before the first repeat is not counted.
"""

import argparse
import json
import statistics
from typing import Any

from sarathi_jax.cli.latency_report import latency_report, latency_table
from sarathi_jax.cli.load import run_load
from sarathi_jax.cli.model_options import add_model_arguments, engine_config, running_engine
from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.cli.report import describe_run, run_report
from sarathi_jax.engine.records import StepRecord
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.simulation.lengths import Synthetic
from sarathi_jax.simulation.token_ids import TokenIds

EXAMPLES = """  sarathi-jax bench latency demo
  sarathi-jax bench latency demo --batch-size 4 --prompt-tokens 256 --output-tokens 32 --repeats 10 --json"""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="requests at once (default: 1)")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="tokens of a prompt (default: 128)")
    parser.add_argument("--output-tokens", type=int, default=64, metavar="N", help="tokens to generate (default: 64)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="batches to time (default: 5)")
    parser.add_argument("--workload-seed", type=int, default=0, metavar="N", help="of the prompts (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    config = engine_config(args)
    if args.repeats < 1:
        raise UsageError(f"--repeats must be at least 1, got {args.repeats}: pass a positive number.")
    workload = Synthetic(max_prompt_tokens=args.prompt_tokens, max_output_tokens=args.output_tokens)
    shapes = workload.draw(args.batch_size, args.workload_seed)
    batches: list[list[RequestOutput]] = []
    records: list[StepRecord] = []
    with running_engine(config) as llm:
        for repeat in range(args.repeats + 1):
            token_ids = TokenIds(shapes, llm.model_config.vocab_size, args.workload_seed + repeat)
            outputs = run_load(llm.engine, shapes, token_ids.all_new_tokens())
            if repeat:  # the first batch warms up
                batches.append(outputs)
                records += llm.engine.records
    settings = {name: getattr(args, name) for name in ("batch_size", "prompt_tokens", "output_tokens", "repeats")}
    report = {"model": config.model, **settings, **summarize(batches), **run_report(records, llm.compile_ledger)}
    print(json.dumps(report) if args.json else f"{describe(report)}\n{describe_run(records, llm.compile_ledger)}")
    return 0


def summarize(batches: list[list[RequestOutput]]) -> dict[str, Any]:
    """A batch takes as long as its slowest request; latencies are over the requests of all batches."""
    seconds = sorted(max(output.metrics.e2e_s for output in batch) for batch in batches)
    latencies = latency_report([output.metrics for batch in batches for output in batch])
    spread = {"median": statistics.median(seconds), "min": seconds[0], "max": seconds[-1]}
    return {"batch_s": spread, "latencies": latencies}


def describe(report: dict[str, Any]) -> str:
    batch_s = report["batch_s"]
    heading = (
        f"{report['model']}: batches of {report['batch_size']}, {report['prompt_tokens']} prompt tokens, "
        f"{report['output_tokens']} output tokens, {report['repeats']} repeats"
    )
    times = f"a batch takes {batch_s['median']:.4f} s (median; {batch_s['min']:.4f} to {batch_s['max']:.4f})"
    return f"{heading}\n{times}\n{latency_table(report['latencies'])}"
