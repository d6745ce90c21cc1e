"""Compile a model's whole step for GPUs that need not be there, and report what would run on each of them.

For every mesh: memory, arrays that are copied, collectives, kernels, and what the step's CUDA graphs leave out. No weights are needed, no GPU, no driver;
products of matrices take default sizes, since tuning them needs the GPU.
"""

import argparse
import json
from dataclasses import asdict, replace
from typing import Any

from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.config import EngineConfig
from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.gpu_defaults import start_on_cpu
from sarathi_jax.simulation.hardware import default_system
from sarathi_jax.simulation.links import Links

EXAMPLES = """  sarathi-jax kernels step --model mistral-7b --mesh tensor=1 --mesh tensor=8
  sarathi-jax kernels step --model llama2-70b --gpu h100 --mesh tensor=4 --num-tokens 2048 --json"""
STEPS = ("decode", "mixed")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--model", default="mistral-7b", metavar="NAME", help="its shape (default: mistral-7b)")
    parser.add_argument("--gpu", default="a100-80g", help="a100-40g, a100-80g, h100, h200 or a40 (default: a100-80g)")
    parser.add_argument("--mesh", action="append", metavar="tensor=N", help="may be repeated (default: tensor=1)")
    parser.add_argument("--num-layers", type=int, metavar="N", help="as many layers alone, to be quick (default: all)")
    parser.add_argument("--num-rows", type=int, default=64, metavar="N", help="rows of both steps (default: 64)")
    parser.add_argument("--num-tokens", type=int, default=512, metavar="N", help="of the mixed step (default: 512)")
    parser.add_argument(
        "--variant", default="greedy", choices=[each.name.lower() for each in Variant], help="what is done with logits"
    )
    parser.add_argument("--page-size", type=int, default=16, metavar="N", help="tokens of a KV page (default: 16)")
    parser.add_argument(
        "--kv-dtype", default="auto", choices=["auto", "int8"], help="of KV alone (default: the weights')"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    num_layers = 1 if args.num_layers is None else args.num_layers
    if min(num_layers, args.num_rows, args.num_tokens, args.page_size) < 1:
        raise UsageError(
            "--num-layers, --num-rows, --num-tokens and --page-size must be at least 1: choose larger numbers."
        )
    reports = [report for mesh in args.mesh or ["tensor=1"] for report in report_mesh(args, mesh)]
    if args.json:
        print(json.dumps({"model": args.model, "gpu": args.gpu, "steps": reports}))
    else:
        print("\n".join(describe(report) for report in reports))
    return 0


def report_mesh(args: argparse.Namespace, mesh_text: str) -> list[dict[str, Any]]:
    """Both steps on one mesh."""
    start_on_cpu()  # the GPUs are described, whatever is here
    from sarathi_jax.checkpoints.model_source import find_model
    from sarathi_jax.lab.described_gpus import DESCRIBED_GPUS, GPUS_PER_HOST, described_mesh
    from sarathi_jax.lab.step_report import report_step

    shape = EngineConfig(mesh=mesh_text, token_budget=2**20).mesh_shape
    mesh = described_mesh(args.gpu, shape)
    links = Links(default_system(args.gpu, GPUS_PER_HOST))
    config = find_model(args.model, is_dummy=True).config
    config = replace(config, num_layers=min(args.num_layers or config.num_layers, config.num_layers))
    dtype = "bfloat16" if config.dtype == "float32" else config.dtype
    reports = []
    for step in STEPS:
        num_tokens = args.num_rows if step == "decode" else args.num_tokens
        bucket = Bucket(num_tokens, args.num_rows, step == "decode", Variant[args.variant.upper()])
        report = report_step(
            config,
            mesh,
            DESCRIBED_GPUS[args.gpu].memory,
            bucket,
            links=links,
            gpus_per_host=GPUS_PER_HOST,
            page_size=args.page_size,
            dtype=dtype,
            kv_dtype=dtype if args.kv_dtype == "auto" else args.kv_dtype,
        )
        reports.append({"mesh": shape, **asdict(report)})
    return reports


def describe(report: dict[str, Any]) -> str:
    """One step, in three lines."""
    mesh = ",".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    talk = ", ".join(f"{count} {kind}" for kind, count in report["collectives"].items()) or "no collectives"
    outside = ", ".join(f"{count} {kind}" for kind, count in report["outside_graphs"].items()) or "nothing"
    in_place = "all" if report["alias_bytes"] == report["state_bytes"] else "NOT all"
    return (
        f"{mesh} {report['bucket']}: weights {_gib(report['weight_bytes'])}, KV of {report['num_kv_tokens']} tokens, temporary"
        f" {report['temp_bytes'] / 2**20:.1f} MiB\n"
        f"  {in_place} of the state in place; {report['num_page_copies']} copies of KV pages, {report['num_weight_copies']} of weights; {talk}\n"
        f"  {report['num_kernel_calls']} Triton kernels; {report['num_graphs']} CUDA graphs, and outside of them {outside}"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
