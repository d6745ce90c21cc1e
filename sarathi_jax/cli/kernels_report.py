"""Compile each GPU kernel at its tuned sizes for sm_80 and sm_90, and report what came out: registers, shared memory, spills, instructions, occupancy.

Needs triton, and neither a GPU nor a driver. `spilled` must be 0. Occupancy is what registers, shared memory and warps leave room for, not a measurement.
"""

import argparse
import json
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from sarathi_jax.cli.options import Parser
from sarathi_jax.errors import ConfigError
from sarathi_jax.gpu_defaults import start_on_cpu

EXAMPLES = """  sarathi-jax kernels report
  sarathi-jax kernels report --json
  sarathi-jax kernels report --output kernels/compile_report.json"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write that object to a file too")


def run(args: argparse.Namespace) -> int:
    if not find_spec("triton"):
        raise ConfigError("kernels report needs triton, got none: pip install 'sarathi-jax[aot]'.")
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel can't be compiled
    start_on_cpu()
    from sarathi_jax.kernels.compile_report import compile_all, table

    reports = compile_all()
    kernels = [json.dumps({**each._asdict(), "occupancy": each.occupancy}) for each in reports]
    lines = ",\n  ".join(kernels)  # one line a kernel
    text = f'{{"triton": "{version("triton")}", "kernels": [\n  {lines}\n]}}\n'
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    print(" ".join(text.split()) if args.json else table(reports))
    return int(any(each.spilled_bytes for each in reports))
