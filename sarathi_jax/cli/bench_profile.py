"""Measure what steps take on this machine: every compiled size, with decodes, chunks and contexts of several lengths, straight on the engine's executor.

Writes a profile, which --tbt-slo-ms of every other command reads with --profile. Fits the step-time model to it, and says which token budget keeps a time
between tokens: the largest step that 99 of 100 finish in time with all requests decoding. Steps of up to --token-budget tokens are measured.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sarathi_jax.cli.model_options import add_model_arguments, engine_config
from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.step_profile import StepProfile, write_profile
from sarathi_jax.scheduling.step_times import StepTimeModel, fit_errors
from sarathi_jax.scheduling.token_budget import (
    REFERENCE_CONTEXT,
    RELAXED,
    STRICT,
    budget_load,
    compute_token_budget,
    default_tbt_slo_s,
    profiled_sizes,
)

EXAMPLES = """  sarathi-jax bench profile demo
  sarathi-jax bench profile demo --out profile.json --tbt-slo-ms 100
  sarathi-jax bench profile demo --token-budget 2048 --max-num-seqs 64 --repeats 100 --json"""


def add_arguments(parser: Parser) -> None:
    # The goal is no option of the engine that is measured.
    add_model_arguments(parser, skip=("tbt_slo_ms", "profile"))
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the profile there")
    parser.add_argument("--tbt-slo-ms", dest="slo_ms", type=float, metavar="X", help="say which budget keeps this goal")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="times of each step (default: 9)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    config = engine_config(args)
    if args.repeats < 1:
        raise UsageError(f"--repeats must be at least 1, got {args.repeats}: pass a positive number.")
    if args.slo_ms is not None and not args.slo_ms > 0:
        raise UsageError(f"--tbt-slo-ms must be above 0, got {args.slo_ms}: pass a time in milliseconds.")
    if args.out is not None and not args.out.parent.is_dir():
        raise UsageError(f"--out must be in a folder that is there, got {args.out}: make {args.out.parent} first.")
    from sarathi_jax.cli.profile_run import measure_profile  # here: jax takes over a second to import

    start_s = time.perf_counter()
    profile, num_compiles = measure_profile(config, args.repeats)
    if args.out is not None:
        write_profile(profile, args.out)
    report = {
        **summarize(profile, args.slo_ms),
        "seconds": time.perf_counter() - start_s,
        "num_compiles_after_ready": num_compiles,
        "file": None if args.out is None else str(args.out),
    }
    print(json.dumps(report) if args.json else describe(report))
    return 0


def summarize(profile: StepProfile, slo_ms: float | None) -> dict[str, Any]:
    """The fitted model, how well it fits, what full steps take, and budgets: for the paper's goals, and the one that was asked for."""
    model, load, sizes = StepTimeModel.fit(profile), budget_load(profile), profiled_sizes(profile)
    context = min(REFERENCE_CONTEXT, profile.max_model_len)
    goals_s = {
        name: default_tbt_slo_s(model, times, context) for name, times in (("strict", STRICT), ("relaxed", RELAXED))
    }
    if slo_ms is not None:
        goals_s["asked for"] = slo_ms / 1e3
    budgets = []
    for name, goal_s in goals_s.items():
        budget, reason = None, None
        try:
            budget = compute_token_budget(goal_s, model, sizes, load)
        except ConfigError as error:
            reason = str(error)
        budgets.append({"goal": name, "tbt_slo_s": goal_s, "token_budget": budget, "reason": reason})
    return {
        "model": profile.model,
        "device": profile.device,
        "mesh": profile.mesh,
        "num_samples": len(profile.samples),
        "repeats": profile.samples[0].num_repeats,
        "fit": {
            "decode_base_s": dict(zip(model.decode.sizes, model.decode.seconds, strict=True)),
            "mixed_base_s": dict(zip(model.mixed.sizes, model.mixed.seconds, strict=True)),
            "per_row_s": model.per_row_s,
            "per_context_s": model.per_context_s,
            "per_pair_s": model.per_pair_s,
            "error": fit_errors(model, profile)._asdict(),
        },
        "full_load": {"num_decodes": load.num_decodes, "context": load.context, "tail_ratio": load.tail_ratio},
        "full_steps": [
            {"num_tokens": size, "p99_s": load.p99_s(model, size)} for size in sizes if size > load.num_decodes
        ],
        "budgets": budgets,
    }


def describe(report: dict[str, Any]) -> str:
    fit, load = report["fit"], report["full_load"]
    place = f"{report['model']} on {report['device']}" + (f", {report['mesh']}" if report["mesh"] else "")
    lines = [
        f"{place}: {report['num_samples']} steps, {report['repeats']} times each, in {report['seconds']:.1f} s",
        _base_line("decodes alone", fit["decode_base_s"]),
        _base_line("other steps", fit["mixed_base_s"]),
        f"{'and':<14}{fit['per_row_s'] * 1e3:.4f} ms a row, {fit['per_context_s'] * 1e6:.4f} ms a thousand tokens that decodes attend to,"
        f" {fit['per_pair_s'] * 1e9:.4f} ms a million pairs of chunks",
        f"{'fit':<14}off by {fit['error']['median']:.1%} in the median, {fit['error']['p90']:.1%} at the 90th percentile",
        f"{'full steps':<14}{load['num_decodes']} decodes at {load['context']:,} tokens, the rest a chunk, 99 of 100 within: "
        + (
            ", ".join(f"{each['num_tokens']} in {each['p99_s'] * 1e3:.4g} ms" for each in report["full_steps"])
            or "none"
        ),
    ]
    for each in report["budgets"]:
        budget = f"token budget {each['token_budget']}" if each["token_budget"] else f"none. {each['reason']}"
        lines.append(f"{each['goal']:<14}{each['tbt_slo_s'] * 1e3:.4g} ms between tokens: {budget}")
    if report["file"]:
        lines.append(f"{'profile':<14}{report['file']}")
    return "\n".join(lines)


def _base_line(name: str, seconds: dict[int, float]) -> str:
    return f"{name:<14}" + ", ".join(f"{size} in {each * 1e3:.4g} ms" for size, each in seconds.items())
