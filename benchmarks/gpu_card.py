"""What this engine reaches on one GPU, beside what the GPU reaches, and first whether its numbers are right: attention alone, the compiled step, the whole engine, every policy, and transformers.

    python -m benchmarks.gpu_card [--only PART,PART] [--output FILE.json] [--flex] [--tiny]

Run it from the root of a checkout; it needs no installation beyond jax, jax-triton, triton, flax, numpy, tokenizers, safetensors, tqdm and jinja2. PyTorch and
transformers are compared with where they are installed. Parts, each in processes of its own, each a few minutes:

    correct    every operation of the kernels against float64, and a small model's tokens; less than a minute
    ceilings   device copy bandwidth, and the rate of large bfloat16 products
    attention  ragged paged attention alone: decodes, chunks, and both in one launch; PyTorch's beside it
    step       the compiled step of mistral-7b and llama3-8b beside the least time that it could take; what sampling adds to it
    engine     start, tokens a second, idle share between steps, latencies under Poisson load, compiles
    policies   every scheduling policy under one load
    compare    transformers' generate beside ours

Metrics: medians of several repeats of many calls; each part's module says what is counted. The last line of standard output is one JSON object with versions,
device, commit, all rows, and the goals with what was got. With --output it is in that file after every row, so that a run that is cut off leaves what it has, and
compiled programs are kept beside it, as card.cache beside card.json (else in the user's cache folder), where the next run finds them. The exit code is 1 if numbers are wrong.

Without a GPU, sizes are tiny and the figures mean nothing: it then only shows that the card works.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.arithmetic import ceilings_of
from benchmarks.gpu.order import TINY_MODEL, Order, Row
from benchmarks.gpu.parts import MODELS, PARTS, Child, child_environment, run_child, run_part, with_ceilings
from benchmarks.gpu.report import Report
from benchmarks.gpu.table import tables

CHILD_TIMEOUT_S = 240.0
PROBE_TIMEOUT_S = 180.0


def probe(environment: dict[str, str]) -> Row:
    """The device that jax sees, asked by a child that takes no memory of it. Raises: SystemExit if it sees none."""
    child = Child("machine")
    order = Order(is_tiny=True, model="")
    row = run_child(child, order, environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, PROBE_TIMEOUT_S)[-1]
    if "failed" in row:
        raise SystemExit(f"jax must find a device, got: {row['failed']}")
    return row


def measure(names: list[str], report: Report, order: Order, environment: dict[str, str], timeout_s: float) -> None:
    """Run the parts, print a table of each, and report every row when it is there."""
    for name in names:
        started_s = time.perf_counter()

        def put(rows: list[Row], name: str = name, started_s: float = started_s) -> None:
            report.put(name, time.perf_counter() - started_s, rows)

        rows = run_part(name, order, environment, timeout_s, put)
        warning = f"{shout(report.obstacle)}\n" if report.obstacle else ""
        seconds = time.perf_counter() - started_s
        print(f"\n== {name} ({seconds:.0f} s)\n{warning}{tables(rows)}", flush=True)
        if name == "ceilings":
            order = replace(order, ceilings=ceilings_of(rows))


def shout(obstacle: str) -> str:
    """For whoever reads a table's first lines and no more."""
    return f"!!! NOT THE GPU'S OWN KERNELS: {obstacle}. No goal of speed is met or missed, and large prefills are left out. !!!"


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
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="keep the JSON there too, from the first row on"
    )
    parser.add_argument(
        "--flex", action="store_true", help="time PyTorch's flex_attention too; it takes minutes to compile"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes; chosen by itself where there is no GPU")
    parser.add_argument(
        "--timeout-s", type=float, default=CHILD_TIMEOUT_S, metavar="X", help="longest that one child may take"
    )
    return parser.parse_args()


def cache_folder(output: Path | None) -> Path | None:
    """Beside the output, and only its owner's, since what is loaded from it is run. None: the user's."""
    if output is None:
        return None
    folder = output.absolute().with_suffix(".cache")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def main() -> None:
    """Command line: see the module's text."""
    args = arguments()
    environment = child_environment(cache_folder(args.output))
    device = probe(environment)
    is_tiny = args.tiny or device["platform"] == "cpu"
    if is_tiny:
        why = "no GPU" if device["platform"] == "cpu" else "--tiny"
        print(f"{why}: sizes are tiny and the figures mean nothing")
    if device["obstacle"]:
        print(shout(device["obstacle"]))
    print(f"device: {device['name']} ({device['platform']})", flush=True)
    report = Report(device, is_tiny=is_tiny, output=args.output)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(TINY_MODEL))
        order = Order(is_tiny, folder if is_tiny else MODELS[0], has_flex=args.flex)
        measure(with_ceilings(args.only), report, order, environment, args.timeout_s)
    print(f"\n== goals\n{tables(report.goals)}\n")
    if report.has_wrong_numbers:
        print("!!! NUMBERS ARE WRONG: see the part `correct`. !!!")
    print(report.finish(), flush=True)
    sys.exit(int(report.has_wrong_numbers))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a child does not outlive us
    main()
