"""Write a model as an Orbax checkpoint, with its configuration and tokenizer: a model folder that every command takes, and that any mesh loads faster.

SRC is `demo`, a folder, or a hub id. DST must not be there yet; it gets its name when it is complete. Parameters stay as they are unless --dtype is given,
and pass through memory a few at a time: nothing has to hold the model as a whole.
"""

import argparse
import json
import sys
import time

from tqdm import tqdm

from sarathi_jax.cli.options import Parser
from sarathi_jax.gpu_defaults import start_on_cpu

DTYPES = ("float32", "bfloat16", "float16")
EXAMPLES = """  sarathi-jax convert demo demo-orbax
  sarathi-jax convert mistralai/Mistral-7B-Instruct-v0.2 models/mistral-7b --dtype bfloat16
  sarathi-jax convert ./llama ./llama-orbax --json"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="demo, a folder, or a hub id")
    parser.add_argument("destination", metavar="DST", help="the folder to make")
    text = "of what is written (default: SRC's)"
    parser.add_argument("--dtype", choices=DTYPES, metavar="|".join(DTYPES), help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    start_on_cpu()  # no device takes part
    from sarathi_jax.checkpoints.convert import convert  # here: jax takes over a second to import

    start_s = time.monotonic()
    done = convert(args.source, args.destination, dtype=args.dtype, progress=sys.stderr.isatty())
    seconds = time.monotonic() - start_s
    if args.json:
        report = {"folder": str(done.folder), "num_parameters": done.num_parameters, "num_bytes": done.num_bytes}
        print(json.dumps({**report, "seconds": round(seconds, 3)}))
    else:
        size = f"{done.num_parameters / 1e6:.1f} million parameters, {tqdm.format_sizeof(done.num_bytes, 'B')}"
        print(f"wrote {done.folder}: {size}, in {seconds:.1f} s")
    return 0
