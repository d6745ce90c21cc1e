"""What simulated runs and searches came to: as JSON, and as text for people."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sarathi_jax.cli.latency_report import latency_table, percentiles
from sarathi_jax.cli.report import step_mix
from sarathi_jax.simulation.bubbles import Bubbles, lock_step_bubbles
from sarathi_jax.simulation.capacity import Criterion
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.microbatches import Microbatch
from sarathi_jax.simulation.rate_search import Capacity
from sarathi_jax.simulation.results import SimulationResult
from sarathi_jax.simulation.series_bubbles import series_bubbles

BUBBLE_NAMES = {
    "prefill_size_s": "prefills of other sizes",
    "prefill_decode_s": "prefill beside decodes",
    "decode_context_s": "decodes of other contexts",
    "empty_s": "no microbatch",
    "host_s": "host code",
}
SHORT_DRIFT = 1.5


def deployment_json(model: str, deployment: Deployment) -> dict[str, Any]:
    cost_model = deployment.cost_model
    return {
        "model": model,
        "device": cost_model.device.name,
        "system": cost_model.links.system.name,
        "topology": {"num_hosts": cost_model.placement.num_hosts, "gpus_per_host": cost_model.placement.gpus_per_host},
        "mesh": cost_model.placement.describe(),
        "host": cost_model.host.name,
        "pipeline": "lock-step" if deployment.has_lock_step else "series",
        "is_overlapped": deployment.is_overlapped,
        "is_prefix_caching": deployment.is_prefix_caching,
        "max_num_seqs": deployment.max_num_seqs,
        "max_model_len": deployment.max_model_len,
        "kv_tokens": deployment.num_pages * deployment.page_size,
    }


def describe_deployment(report: dict[str, Any]) -> str:
    hosts, loop = report["topology"], "overlapped" if report["is_overlapped"] else "plain"
    stages = f", stages in {report['pipeline'].replace('-', ' ')}" if "stage" in report["mesh"] else ""
    return (
        f"{report['model']} on {hosts['num_hosts']} x {hosts['gpus_per_host']} {report['device']} ({report['system']}), mesh {report['mesh']}{stages}\n"
        f"host code of {report['host']}, {loop} loop; {report['kv_tokens']:,} tokens of KV, at most {report['max_num_seqs']} requests of"
        f" {report['max_model_len']:,} tokens\n"
    )


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


# ---- one run ----


def run_json(result: SimulationResult, num_stalls: int, bubbles: Bubbles | None) -> dict[str, Any]:
    """Everything of one run; bubbles where there are stages."""
    num_prompt_tokens = sum(each.num_prompt_tokens for each in result.requests)
    first_s = min(each.arrival_s for each in result.requests)
    duration_s = result.end_s - first_s
    mix = step_mix(result.steps)
    return {
        "num_requests": len(result.requests),
        "num_unfinished": result.num_unfinished,
        "num_prompt_tokens": num_prompt_tokens,
        "num_output_tokens": result.num_output_tokens,
        "num_prefix_hit_tokens": sum(each.num_prefix_hit_tokens for each in result.requests),
        "num_preemptions": sum(each.num_preemptions for each in result.requests),
        "duration_s": duration_s,
        "requests_per_s": len(result.requests) / duration_s,
        "output_tokens_per_s": result.num_output_tokens / duration_s,
        "total_tokens_per_s": (num_prompt_tokens + result.num_output_tokens) / duration_s,
        "backlog_drift": finite(result.backlog_drift),
        "num_stalls": num_stalls,
        "latencies": {
            "ttft_s": percentiles(result.ttft_s),
            "tbt_s": percentiles(result.tbt_s),
            "scheduling_delay_s": percentiles(result.scheduling_delay_s),
            "e2e_s": percentiles(each.token_times_s[-1] - each.arrival_s for each in result.requests),
        },
        "steps": asdict(mix),
        "stages": None if bubbles is None else {**asdict(bubbles), "idle_share": bubbles.idle_share},
    }


def bubbles_of(deployment: Deployment, microbatches: Sequence[Microbatch]) -> Bubbles:
    """Of a whole run, by the kind of the pipeline."""
    cost_model, num_stages = deployment.cost_model, deployment.num_stages
    limit = num_stages + deployment.is_overlapped
    if deployment.has_lock_step:
        return lock_step_bubbles(microbatches, num_stages, cost_model.host, cost_model.first_stage)
    found = series_bubbles(microbatches, num_stages, cost_model.host, cost_model.first_stage, limit)
    return sum(found, Bubbles())


def describe_run(report: dict[str, Any]) -> str:
    steps, drift = report["steps"], report["backlog_drift"]
    lines = [
        f"{report['num_requests']} requests in {report['duration_s']:.1f} s: {report['requests_per_s']:.2f}/s,"
        f" {report['output_tokens_per_s']:.0f} output tokens/s, {report['total_tokens_per_s']:.0f} with the prompts'",
        latency_table(report["latencies"]),
        f"drift {'-' if drift is None else f'{drift:.2f}'}, {report['num_unfinished']} unfinished, {report['num_preemptions']} preemptions,"
        f" {report['num_stalls']} stalls, {report['num_prefix_hit_tokens']} tokens from the prefix cache",
        f"steps: {steps['num_steps']}, {steps['num_prefill_only']} prefill only, {steps['num_hybrid']} hybrid, {steps['num_decode_only']} decode only",
    ]
    if (slo := report["tbt_slo"]) and slo["share_kept"] is not None:
        lines.append(f"gaps of at most {slo['slo_s'] * 1e3:g} ms: {slo['share_kept']:.2%}")
    if stages := report["stages"]:
        total_s = stages["busy_s"] / (1 - stages["idle_share"])
        parts = [f"{title} {stages[name] / total_s:.1%}" for name, title in BUBBLE_NAMES.items()]
        lines.append(f"stages idle {stages['idle_share']:.1%} of their time: {', '.join(parts)}")
    return "\n".join(lines)


# ---- capacity ----


def capacity_json(policy: str, token_budget: int, criterion: Criterion, found: Capacity) -> dict[str, Any]:
    """One cell. Numbers are those of the trial at the capacity; None if nothing held. A capacity of None is without bounds: there are too few requests."""
    at, is_bounded = found.at, found.requests_per_s < float("inf")
    return {
        "policy": policy,
        "token_budget": token_budget,
        "tbt_slo_s": criterion.tbt_slo_s,
        "requests_per_s": found.requests_per_s if is_bounded else None,
        "p99_tbt_s": at and at.p99_tbt_s,
        "median_delay_s": at and at.median_delay_s,
        "median_ttft_s": at and at.median_ttft_s,
        "p99_ttft_s": at and at.p99_ttft_s,
        "backlog_drift": at and finite(at.backlog_drift),
        "num_unfinished": at and at.num_unfinished,
        "trials": [{**asdict(trial), "backlog_drift": finite(trial.backlog_drift)} for trial in found.trials],
    }


def capacity_table(cells: Sequence[dict[str, Any]]) -> str:
    """A line a cell, always with what the criterion alone does not say."""
    lines = [
        f"{'':34}{'capacity':>10}{'P99 TBT':>10}{'delay':>9}{'TTFT P50':>10}{'P99':>9}{'drift':>8}{'unfinished':>12}",
        f"{'policy':14}{'budget':>8}{'SLO, ms':>12}{'req/s':>10}{'ms':>10}{'P50, s':>9}{'s':>10}{'s':>9}",
    ]
    for cell in cells:
        head = f"{cell['policy']:14}{cell['token_budget']:>8}{cell['tbt_slo_s'] * 1e3:>12.0f}"
        if cell["requests_per_s"] is None or not cell["requests_per_s"]:
            lines.append(f"{head}{'none' if cell['p99_tbt_s'] is None else 'any':>10}   {_why_no_number(cell)}")
            continue
        lines.append(
            f"{head}{cell['requests_per_s']:>10.3f}{cell['p99_tbt_s'] * 1e3:>10.1f}{cell['median_delay_s']:>9.2f}{cell['median_ttft_s']:>10.2f}{cell['p99_ttft_s']:>9.2f}"
            f"{cell['backlog_drift']:>8.2f}{cell['num_unfinished']:>12}"
        )
    if any(cell["requests_per_s"] and cell["backlog_drift"] > SHORT_DRIFT for cell in cells):
        lines.append(
            "note: where drift is high, arrivals ended long before serving did: no run as short as this finds a true capacity. Use more requests."
        )
    return "\n".join(lines)


def _why_no_number(cell: dict[str, Any]) -> str:
    if cell["p99_tbt_s"] is None:
        return "no rate holds the SLO"
    return "every rate holds it: with so few requests they may come all at once"
