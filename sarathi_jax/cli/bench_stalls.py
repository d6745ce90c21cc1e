"""Show which scheduling policies stall: decodes go on steadily while long prompts arrive, under one policy after the other, on the same compiled steps.

Counts the steps that leave out a running decode, and times how long decodes wait for their next tokens. --token-budget is that of policies that split prompts;
the others get one that holds the longest request. Step times are measured first, and then each step's is predicted before it is learned from. Prompts are random token ids, and outputs go on past the end of sequence.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from sarathi_jax import __version__
from sarathi_jax.cli.doctor import installed_version
from sarathi_jax.cli.model_options import add_model_arguments, engine_config
from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.cli.stall_plot import plot_stalls
from sarathi_jax.cli.stall_report import StallReport, middle_of, report_of, table
from sarathi_jax.cli.stall_run import StallLoad, StallRun, run_stall_load
from sarathi_jax.cli.step_predictions import StepPrediction, predict, prediction_report
from sarathi_jax.cli.timeline import check_plotting
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.scheduling.policies import POLICIES, make_policy
from sarathi_jax.scheduling.step_times import FitErrors, StepTimeModel, fit_errors

EXAMPLES = """  sarathi-jax bench stalls
  sarathi-jax bench stalls demo --policies sarathi,vllm --prompts 8 --plot stalls.png
  sarathi-jax bench stalls demo --decodes 16 --prompt-tokens 1000 --token-budget 128 --json"""
# Options of the engine that the command chooses itself, or has one of its own for.
SKIPPED = ("policy", "token_budget", "max_num_seqs", "tbt_slo_ms", "profile")
WARM_UP = StallLoad(num_decodes=2, num_prompts=1, prompt_tokens=8, tokens_between=2, num_quiet_tokens=4)
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
    load = StallLoad(**{field: getattr(args, field) for field in LOAD_OPTIONS})
    names = list(dict.fromkeys(args.policies.split(",")))
    for name in names:
        make_policy(name)
    for name, least in (("repeats", 1), ("profile_repeats", 0)):
        if (got := getattr(args, name)) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {got}: pass a larger number.")
    config = largest_config(engine_config(args), load)
    check_budget(config, args.budget)
    if args.plot:
        check_plotting(args.plot)
    repeats = {"num_repeats": args.repeats, "num_profiled": args.profile_repeats}
    found = compare(config, names, args.budget, load, **repeats)
    print(json.dumps(to_json(config, load, found)) if args.json else describe(config, load, found))
    if args.plot:
        plot_stalls({report.policy: run for report, run in found.runs}, args.plot)
    return 0


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


class Comparison(NamedTuple):
    """runs: of each policy the one in the middle. fit: of the step-time model to the profile that was measured before; predictions: of the steps of each
    policy's runs, all of them; None: no profile was asked for."""

    runs: Sequence[tuple[StallReport, StallRun]]
    fit: FitErrors | None
    predictions: Mapping[str, Sequence[StepPrediction]] | None


def compare(
    config: EngineConfig, names: Sequence[str], budget: int, load: StallLoad, *, num_repeats: int, num_profiled: int
) -> Comparison:
    """Run the load under each policy. Policies take turns, so that a slow minute of the machine hits all of them.

    num_profiled: repeats of each step of the profile; 0: no profile.
    Raises: SarathiError.
    """
    from sarathi_jax.cli.policy_engines import policy_engines  # here: jax takes over a second to import

    order: list[str] = []
    found: list[tuple[StallReport, StallRun]] = []
    with policy_engines(config, progress=sys.stderr.isatty()) as engines:
        profile = engines.profile(num_profiled) if num_profiled else None
        for repeat in range(-1, num_repeats):  # the first steps of a process are slower than the rest
            for name in names:
                budget_of_it = engines.budget_for(make_policy(name), budget)
                engine, keeper = engines.engine(make_policy(name), budget_of_it)
                run = run_stall_load(engine, keeper, WARM_UP if repeat < 0 else load, engines.vocab_size)
                if repeat >= 0:
                    order.append(name)
                    found.append((report_of(name, budget_of_it, run), run))
    runs = [middle_of([each for each in found if each[0].policy == name]) for name in names]
    if profile is None:
        return Comparison(runs, None, None)
    times = StepTimeModel.fit(profile)
    fit, steps = fit_errors(times, profile), predict(times, [(run.schedules, run.records) for _, run in found])
    by_policy = {
        name: [step for at, each in zip(order, steps, strict=True) if at == name for step in each] for name in names
    }
    return Comparison(runs, fit, by_policy)


def to_json(config: EngineConfig, load: StallLoad, found: Comparison) -> dict[str, Any]:
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
        "load": asdict(load),
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


def describe(config: EngineConfig, load: StallLoad, found: Comparison) -> str:
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
