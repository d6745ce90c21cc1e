"""What this engine reaches on one GPU, beside what the GPU reaches: attention alone, the compiled step, the whole engine, every policy, and transformers.

    python -m benchmarks.gpu_card [--only PART,PART] [--output FILE.json] [--tiny]

Run it from the root of a checkout; it needs no installation beyond jax, jax-triton, triton, flax, numpy, tokenizers, safetensors, tqdm and jinja2. PyTorch and
transformers are compared with where they are installed. Parts, each in processes of its own, each a few minutes:

    ceilings   device copy bandwidth, and the rate of large bfloat16 products
    attention  ragged paged attention alone: decodes, chunks, and both in one launch; PyTorch's beside it
    step       the compiled step of mistral-7b and llama3-8b beside the least time that it could take
    engine     start, tokens a second, idle share between steps, latencies under Poisson load, compiles
    policies   every scheduling policy under one load
    compare    transformers' generate beside ours

Metrics: medians of several repeats of many calls; each part's module says what is counted. The last line of standard output is one JSON object with versions,
device, commit, all rows, and the goals with what was got. Without a GPU, sizes are tiny and the figures mean nothing: it then only shows that the card works.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.arithmetic import ceilings_of
from benchmarks.gpu.goals import evaluate
from benchmarks.gpu.machine import commit, versions
from benchmarks.gpu.order import TINY_MODEL, Order, Row
from benchmarks.gpu.parts import MODELS, PARTS, Child, child_environment, run_child, run_part, with_ceilings
from benchmarks.gpu.table import tables

PART_TIMEOUT_S = 600.0
PROBE_TIMEOUT_S = 180.0


def probe(environment: dict[str, str]) -> Row:
    """The device that jax sees, asked by a child that takes no memory of it. Raises: SystemExit if it sees none."""
    child = Child("machine")
    order = Order(is_tiny=True, model="")
    row = run_child(child, order, environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, PROBE_TIMEOUT_S)[-1]
    if "failed" in row:
        raise SystemExit(f"jax must find a device, got: {row['failed']}")
    return row


def measure(
    names: list[str], device: Row, order: Order, environment: dict[str, str], timeout_s: float
) -> dict[str, Any]:
    """Run the parts, print a table of each, and put everything together."""
    report: dict[str, Any] = {
        "benchmark": "gpu_card",
        "tiny": order.is_tiny,
        "commit": commit(),
        "versions": versions(),
        "device": {name: value for name, value in device.items() if name not in ("kind", "case")},
        "parts": {},
    }
    for name in names:
        started_s = time.perf_counter()
        rows = run_part(name, order, environment, timeout_s)
        report["parts"][name] = {"seconds": time.perf_counter() - started_s, "rows": rows}
        print(f"\n== {name} ({report['parts'][name]['seconds']:.0f} s)\n{tables(rows)}", flush=True)
        if name == "ceilings":
            order = replace(order, ceilings=ceilings_of(rows))
    rows_of_parts = {name: part["rows"] for name, part in report["parts"].items()}
    report["goals"] = evaluate(rows_of_parts, is_tiny=order.is_tiny)
    return report


def part_names(text: str) -> list[str]:
    """Parts, separated by commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    return names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        type=part_names,
        default=list(PARTS),
        metavar="PART,PART",
        help="only these parts, and the ceilings if they need them (default: all)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes; chosen by itself where there is no GPU")
    parser.add_argument(
        "--timeout-s", type=float, default=PART_TIMEOUT_S, metavar="X", help="longest that one child may take"
    )
    return parser.parse_args()


def main() -> None:
    """Command line: see the module's text."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        environment = child_environment(Path(folder) / "compiled")
        device = probe(environment)
        is_tiny = args.tiny or device["platform"] == "cpu"
        model = Path(folder) / "tiny"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(TINY_MODEL))
        if is_tiny:
            why = "no GPU" if device["platform"] == "cpu" else "--tiny"
            print(f"{why}: sizes are tiny and the figures mean nothing")
        print(f"device: {device['name']} ({device['platform']})", flush=True)
        order = Order(is_tiny, str(model) if is_tiny else MODELS[0])
        report = measure(with_ceilings(args.only), device, order, environment, args.timeout_s)
    print(f"\n== goals\n{tables(report['goals'])}\n")
    text = json.dumps(report)
    if args.output:
        args.output.write_text(text + "\n")
    print(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
