"""What `bench serve` prints, and its JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from sarathi_jax.cli.latency_report import latency_table
from sarathi_jax.cli.serve_trials import BUSY_CLIENT, Goals, Trial, trial_json
from sarathi_jax.simulation.rate_search import Trial as RateTrial

NAN = float("nan")


def run_json(facts: Mapping[str, Any], trials: Sequence[Trial], goals: Goals, capacity: float | None) -> dict[str, Any]:
    """The whole report. Its `capacity_requests_per_s` is null without goals, if none was searched, and if all rates held; 0 if none did."""
    return {
        **facts,
        "goals": {
            "ttft_slo_s": goals.ttft_slo_s,
            "tbt_slo_s": goals.tbt_slo_s,
            "max_median_ttft_s": goals.max_median_ttft_s,
        },
        "capacity_requests_per_s": None if capacity == float("inf") else capacity,
        "trials": [trial_json(trial, goals) for trial in trials],
    }


def sweep_trial(report: Mapping[str, Any]) -> RateTrial:
    """One trial as the search for a capacity takes it; the median TTFT stands for the scheduling delay, which a client does not see."""
    first, between = report["latencies"]["ttft_s"] or {}, report["latencies"]["tbt_s"] or {}
    return RateTrial(
        requests_per_s=report["request_rate"],
        does_hold=bool(report["does_hold"]),
        is_cut_short=report["is_interrupted"],
        p99_tbt_s=between.get("p99", NAN),
        median_delay_s=first.get("p50", NAN),
        median_ttft_s=first.get("p50", NAN),
        p99_ttft_s=first.get("p99", NAN),
        backlog_drift=report["backlog_drift"] or NAN,
        num_unfinished=report["num_requests"] - report["num_completed"],
    )


def describe_server(facts: Mapping[str, Any]) -> str:
    counted = facts["tokens_counted_by"]
    hint = "; the server says no usage, so each chunk counts as one token" if counted == "one a chunk" else ""
    return (
        f"{facts['url']} {facts['model']}, {facts['endpoint']}: {facts['num_requests']} requests, prompts as"
        f" {facts['prompts']}, tokens counted by {counted}{hint}"
    )


def describe_trial(name: str, report: Mapping[str, Any]) -> str:
    """Counts, rates and latencies of one trial."""
    lines = [
        f"\n{name}{' (interrupted)' if report['is_interrupted'] else ''}: {report['num_completed']} of"
        f" {report['num_requests']} requests in {report['duration_s']:.3f} s, {report['num_rejected']} rejected,"
        f" {report['num_failed']} failed",
        f"{report['requests_per_s']:.2f} requests/s, {report['output_tokens_per_s']:.1f} output tokens/s,"
        f" {report['total_tokens_per_s']:.1f} with the prompts'; {report['num_prompt_tokens']} prompt and"
        f" {report['num_output_tokens']} output tokens in {report['num_token_chunks']} chunks",
        latency_table(report["latencies"]),
    ]
    if report["errors"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report["errors"].items()))
        lines.append(f"errors    {kinds}; the first: {report['first_error']}")
    if report["goodput"] is not None:
        good = report["goodput"]
        holds = "holds" if report["does_hold"] else "does not hold"
        lines.append(f"goodput   {good['requests_per_s']:.2f} requests/s, {good['share']:.1%} of all; the load {holds}")
    if report["client_cpu_share"] > BUSY_CLIENT:
        lines.append(
            f"warning: this client used {report['client_cpu_share']:.0%} of a core: its own work is in the latencies."
        )
    return "\n".join(lines)


def describe_sweep(report: Mapping[str, Any]) -> str:
    """All trials, a line each, by load; then the capacity."""
    titles = ("load", "done", "req/s", "tokens/s", "TTFT P50", "P99", "TBT P50", "P99, ms", "good/s", "drift")
    rows: list[tuple[str, ...]] = [titles]
    for each in sorted(report["trials"], key=lambda trial: (trial["request_rate"] or 0, trial["concurrency"] or 0)):
        first, between = each["latencies"]["ttft_s"], each["latencies"]["tbt_s"]
        load = f"{each['request_rate']:.4g} req/s" if each["request_rate"] else f"{each['concurrency']} at a time"
        rows.append(
            (
                load,
                f"{each['num_completed']}/{each['num_requests']}",
                f"{each['requests_per_s']:.2f}",
                f"{each['output_tokens_per_s']:.1f}",
                *(_ms(found, rank) for found in (first, between) for rank in ("p50", "p99")),
                f"{each['goodput']['requests_per_s']:.2f}" if each["goodput"] else "-",
                f"{each['backlog_drift']:.2f}" if each["backlog_drift"] else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["", *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)]
    return "\n".join([*lines, *_capacity_line(report)])


def _capacity_line(report: Mapping[str, Any]) -> list[str]:
    capacity = report["capacity_requests_per_s"]
    if capacity:
        return [f"capacity  {capacity:.4g} requests/s keep the goals, of the rates that were tried"]
    held = [each["does_hold"] for each in report["trials"] if each["request_rate"] is not None]
    if capacity == 0.0:
        return ["capacity  none of the rates that were tried keeps the goals"]
    return ["capacity  all rates that were tried keep the goals: send more requests"] if held and all(held) else []


def _ms(found: Mapping[str, float] | None, rank: str) -> str:
    return f"{found[rank] * 1e3:.1f}" if found else "-"
