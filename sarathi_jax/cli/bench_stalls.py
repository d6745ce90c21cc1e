"""Show which scheduling policies stall: decodes go on steadily while long prompts arrive, under one policy after the other, on the same compiled steps.

Counts the steps that leave out a running decode, and times how long decodes wait for their next tokens. --token-budget is that of policies that split prompts;
`slo` chooses for itself, and the others get one that holds the longest request. Step times are measured first, and then each step's is predicted before it is
learned from. Prompts are random token ids, and outputs go on past the end of sequence.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sarathi_jax import __version__
from sarathi_jax.cli.doctor_environment import installed_version
from sarathi_jax.cli.model_options import add_model_arguments, engine_config
from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.cli.stall_comparison import Comparison, Contest, compare
from sarathi_jax.cli.stall_plot import plot_stalls
from sarathi_jax.cli.stall_report import table
from sarathi_jax.cli.stall_run import StallLoad
from sarathi_jax.cli.step_predictions import prediction_report
from sarathi_jax.cli.timeline import check_plotting
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.scheduling.policies import POLICIES, make_policy

EXAMPLES = """  sarathi-jax bench stalls
  sarathi-jax bench stalls demo --policies sarathi,vllm --prompts 8 --plot stalls.png
  sarathi-jax bench stalls demo --decodes 16 --prompt-tokens 1000 --token-budget 128 --json"""
# Options of the engine that the command chooses itself, or has one of its own for.
SKIPPED = ("policy", "token_budget", "max_num_seqs", "tbt_slo_ms", "profile")
LOAD_OPTIONS = {
    "num_decodes": ("--decodes", "requests that decode all the time"),
    "num_prompts": ("--prompts", "prompts that arrive"),
    "prompt_tokens": ("--prompt-tokens", "tokens of each prompt"),
    "tokens_between": ("--tokens-between", "tokens of every decode from one arrival to the next"),
}


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser, skip=SKIPPED)
    group = parser.add_argument_group("stalls")
    names = ",".join(POLICIES)
    group.add_argument(
        "--policies", default=names, metavar="P,P,...", help=f"to compare, in this order (default: {names})"
    )
    group.add_argument(
        "--token-budget",
        dest="budget",
        type=int,
        default=256,
        metavar="N",
        help="most tokens of a step, for policies that split prompts (default: 256)",
    )
    group.add_argument(
        "--tbt-slo-ms",
        dest="slo_ms",
        type=float,
        metavar="X",
        help="time between tokens that `slo` is to keep (default: what the longest step of --token-budget should take)",
    )
    for field, (flag, text) in LOAD_OPTIONS.items():
        default = getattr(StallLoad(), field)
        group.add_argument(
            flag, dest=field, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    group.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="runs of each policy; the one whose longest wait is in the middle is told of (default: 3)",
    )
    group.add_argument(
        "--profile-repeats",
        type=int,
        default=5,
        metavar="N",
        help="first measure every kind of step so many times, to predict those of the runs; 0: don't (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw how long decodes wait, a lane a policy")


def run(args: argparse.Namespace) -> int:
    contest = contest_of(args)
    config = largest_config(engine_config(args), contest.load)
    check_budget(config, contest.budget)
    if args.plot:
        check_plotting(args.plot)
    found = compare(config, contest)
    print(json.dumps(to_json(config, contest, found)) if args.json else describe(config, contest, found))
    if args.plot:
        plot_stalls({report.policy: run for report, run in found.runs}, args.plot)
    return 0


def contest_of(args: argparse.Namespace) -> Contest:
    """Raises: ConfigError."""
    names = list(dict.fromkeys(args.policies.split(",")))
    for name in names:
        make_policy(name)
    for name, least in (("repeats", 1), ("profile_repeats", 0)):
        if (got := getattr(args, name)) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {got}: pass a larger number.")
    if args.slo_ms is not None and not args.slo_ms > 0:
        raise UsageError(f"--tbt-slo-ms must be above 0, got {args.slo_ms}: pass a time in milliseconds.")
    if args.slo_ms is None and "slo" in names and not args.profile_repeats:
        raise UsageError("policy slo needs a goal, got none and no profile to take it from: pass --tbt-slo-ms.")
    return Contest(
        names=names,
        budget=args.budget,
        load=StallLoad(**{field: getattr(args, field) for field in LOAD_OPTIONS}),
        tbt_slo_s=None if args.slo_ms is None else args.slo_ms / 1e3,
        num_repeats=args.repeats,
        num_profiled=args.profile_repeats,
    )


def largest_config(config: EngineConfig, load: StallLoad) -> EngineConfig:
    """The engine's options with room for all requests at a time, and in a step for the longest one beside all others.

    Raises: ConfigError if max_model_len was given and is shorter.
    """
    max_model_len = config.max_model_len or load.max_len
    if max_model_len < load.max_len:
        raise ConfigError(
            f"max_model_len={max_model_len} must hold the longest request, got one of {load.max_len} tokens: leave it out, or shorten the prompts."
        )
    token_budget = max_model_len + load.num_requests
    return replace(config, max_model_len=max_model_len, max_num_seqs=load.num_requests, token_budget=token_budget)


def check_budget(config: EngineConfig, budget: int) -> None:
    """Raises: ConfigError if no step of that size is compiled: it would be padded to a larger one, and be slower than its tokens."""
    buckets = BucketTable(config.step_tokens, config.max_num_seqs, variants=(Variant.GREEDY,))
    sizes = [each.num_tokens for each in buckets.buckets if not each.is_decode_only]
    if budget not in sizes:
        raise ConfigError(
            f"token_budget={budget} must be the size of a compiled step: choose one of {', '.join(map(str, sizes))}."
        )


def to_json(config: EngineConfig, contest: Contest, found: Comparison) -> dict[str, Any]:
    import jax

    machine = {
        "device": jax.devices()[0].device_kind,
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    versions = {"sarathi_jax": __version__, "python": platform.python_version()}
    versions |= {name: installed_version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {
        "model": config.model,
        "load": asdict(contest.load),
        "repeats": {"runs": contest.num_repeats, "profile": contest.num_profiled},
        "policies": {report.policy: report.to_json() for report, _ in found.runs},
        "step_times": step_times_json(found),
        "machine": machine,
        "versions": versions,
    }


def step_times_json(found: Comparison) -> dict[str, Any] | None:
    """Predicted against measured, over the steps of all runs and of each policy's."""
    if found.fit is None or found.predictions is None:
        return None
    every = [step for steps in found.predictions.values() for step in steps]
    by_policy = {name: prediction_report(steps) for name, steps in found.predictions.items()}
    return {"fit": found.fit._asdict(), "all": prediction_report(every), "policies": by_policy}


def describe(config: EngineConfig, contest: Contest, found: Comparison) -> str:
    load = contest.load
    lines = [
        f"{config.model}: {load.num_decodes} decodes, and every {load.tokens_between} tokens of theirs a prompt of {load.prompt_tokens} tokens,"
        f" {load.num_prompts} in all",
        "",
        table([report for report, _ in found.runs]),
    ]
    if (times := step_times_json(found)) is not None:
        errors = times["all"]
        lines += [
            "",
            f"step times      predicted with an error of {errors['median_error']:.1%} in the median and {errors['p90_error']:.1%} at the 90th percentile,"
            f" over {errors['num_steps']} steps of all runs;",
            f"                {errors['median_error_without_learning']:.1%} in the median by the profile alone, which it fits to {times['fit']['median']:.1%}",
        ]
    return "\n".join(lines)
