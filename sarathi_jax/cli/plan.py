"""Plan a deployment: what a model leaves of the GPUs' memory on a mesh, what its steps take, and which collectives they need; with no GPU, and no weights.

Times are a cost model's, from constants with sources (docs/plan.md). Memory and collectives are read from the engine's own step programs, compiled for the
mesh. --compare ranks all meshes of the GPUs, by the cost model alone unless --compile asks for more.
"""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from sarathi_jax.cli.hardware_options import add_hardware_arguments, add_shape_arguments, read_topology
from sarathi_jax.cli.model_options import model_name
from sarathi_jax.cli.options import Parser, UsageError, add_fields, given_fields
from sarathi_jax.config import EngineConfig
from sarathi_jax.gpu_defaults import start_on_cpu

if TYPE_CHECKING:
    from sarathi_jax.lab.plan_task import Planned, PlanTask

EXAMPLES = """  sarathi-jax plan falcon-180b --device a100-80g --topology 2x4 --mesh stage=2,tensor=4 --token-budget 512
  sarathi-jax plan falcon-180b --device a100-80g --topology 2x4 --compare
  sarathi-jax plan mixtral-8x7b --device h100 --topology 1x8 --compare --rank-by throughput --plot layouts.png
  sarathi-jax plan llama2-70b --device h200 --topology 1x4 --mesh tensor=4 --rules sequence --json"""

ENGINE_FIELDS = (
    "mesh",
    "rules",
    "token_budget",
    "max_model_len",
    "page_size",
    "memory_fraction",
    "dtype",
    "kv_dtype",
)
SKIPPED = [field.name for field in fields(EngineConfig) if field.name not in ENGINE_FIELDS]


def add_arguments(parser: Parser) -> None:
    add_shape_arguments(parser)
    add_hardware_arguments(parser)
    load = parser.add_argument_group("load")
    load.add_argument(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="requests that decode at a time, over all replicas (default: 64)",
    )
    load.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens that each attends to (default: 4096, or as many as the model takes)",
    )
    add_fields(parser, EngineConfig, "engine", skip=SKIPPED)
    output = parser.add_argument_group("what to do")
    output.add_argument("--compare", action="store_true", help="rank all meshes that take all of the GPUs")
    output.add_argument(
        "--rank-by",
        default="latency",
        choices=["latency", "tbt", "throughput"],
        help="of decodes alone, of decodes in full steps, or tokens a second of these (default: latency)",
    )
    output.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the steps (default: of one mesh yes, of --compare no)",
    )
    output.add_argument(
        "--variant",
        default="greedy",
        choices=["greedy", "sample", "full"],
        help="what the compiled steps do with logits (default: greedy)",
    )
    output.add_argument("--plot", type=Path, metavar="FILE", help="draw what the steps are made of (.png, .svg, .pdf)")
    output.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Returns 1 if the one mesh that was asked for can't be."""
    start_on_cpu()  # the GPUs are described, whatever is here
    from sarathi_jax.cli.plan_plot import plot_layouts
    from sarathi_jax.cli.plan_report import describe_plan, plan_json
    from sarathi_jax.cli.timeline import check_plotting

    if args.plot:
        check_plotting(args.plot)
    task = read_task(args)
    planned = answer(args, task)
    if args.plot:
        plot_layouts(task, planned, args.plot)
    print(json.dumps(plan_json(task, planned)) if args.json else describe_plan(task, planned))
    return 0 if args.compare or not planned[0].layout.why_not else 1


def read_task(args: argparse.Namespace) -> "PlanTask":
    """What is asked. Raises: ConfigError; ModelError."""
    from sarathi_jax.execution.buckets import Variant
    from sarathi_jax.lab.plan_task import default_topology, make_task

    # Only steps are planned: how many requests an engine takes at a time is no matter here.
    engine = EngineConfig(model=model_name(args), max_num_seqs=1, **given_fields(args, EngineConfig, skip=SKIPPED))
    num_hosts, gpus_per_host = read_topology(args) or default_topology(engine.mesh_shape)
    return make_task(
        engine,
        device=args.device,
        num_hosts=num_hosts,
        gpus_per_host=gpus_per_host,
        system=args.system,
        batch_size=args.batch_size,
        context=args.context,
        variant=Variant[args.variant.upper()],
    )


def answer(args: argparse.Namespace, task: "PlanTask") -> "list[Planned]":
    """One mesh, the best one where none is named, or all of them. Raises: ConfigError."""
    if args.compare and task.engine.mesh:
        raise UsageError(
            f"--compare must come without --mesh: it plans all meshes, got {task.engine.mesh}. Leave one out."
        )
    does_compile = not args.compare if args.compile is None else args.compile
    if args.compare:
        return task.compare(args.rank_by, does_compile=does_compile)
    if task.engine.mesh:
        return [task.plan(task.engine.mesh_shape, does_compile=does_compile)]
    return [task.best(does_compile=does_compile)]
