"""What a load on a server came to: counts, latencies, goodput, and whether it kept the goals, as JSON. Definitions: docs/benchmarking.md."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sarathi_jax.cli.latency_report import percentiles
from sarathi_jax.client.load import LoadRun, SentRequest
from sarathi_jax.errors import ConfigError

VLLM_NAMES = {"ttft_s": "ttft", "tbt_s": "itl", "tpot_s": "tpot", "e2e_s": "e2el"}
TBT_QUANTILE = 0.99
IDLE_REQUESTS = 0.25  # at a time, on average
BUSY_CLIENT = 0.8  # of a core, above which the client's own work is in the latencies


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """Seconds; None: no such goal. A request is good if it keeps them by itself, a load holds if all requests together do and none failed.

    ttft_slo_s: most that TTFT may be, and P99 of all.
    tbt_slo_s: most that P99 of a request's gaps may be, and P99 of all gaps.
    max_median_ttft_s: of a load: the queue may be no longer.
    """

    ttft_slo_s: float | None = None
    tbt_slo_s: float | None = None
    max_median_ttft_s: float = 2.0

    def __post_init__(self) -> None:
        given = [each for each in (self.ttft_slo_s, self.tbt_slo_s, self.max_median_ttft_s) if each is not None]
        if not all(0 < each < float("inf") for each in given):
            raise ConfigError(f"goals must be above 0, got {self}: correct --ttft-slo-ms, --tbt-slo-ms or the median.")

    @property
    def are_given(self) -> bool:
        return self.ttft_slo_s is not None or self.tbt_slo_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One load that was sent, or as much of it as was not interrupted. rate: requests a second; None with `concurrency`, or if times were the workload's own."""

    rate: float | None
    concurrency: int | None
    num_requests: int
    run: LoadRun
    cpu_share: float
    is_interrupted: bool = False

    @property
    def completed(self) -> list[SentRequest]:
        return [each for each in self.run.ended if each.failure is None]

    @property
    def name(self) -> str:
        if self.concurrency is not None:
            return f"{self.concurrency} at a time"
        return "own times" if self.rate is None else f"{self.rate:.3g} req/s"


def ttft_s(request: SentRequest) -> float | None:
    """None if no token came."""
    return request.token_times_s[0] - request.arrival_s if request.token_times_s else None


def gaps_s(request: SentRequest) -> np.ndarray:
    """f64[chunks with tokens - 1]."""
    return np.diff(np.asarray(request.token_times_s, np.float64))


def tpot_s(request: SentRequest) -> float | None:
    """The mean time of a token after the first; None of fewer than two."""
    if request.num_output_tokens < 2 or len(request.token_times_s) < 2:
        return None
    return (request.token_times_s[-1] - request.token_times_s[0]) / (request.num_output_tokens - 1)


def is_good(request: SentRequest, goals: Goals) -> bool:
    """Whether a request that ended well keeps the goals by itself."""
    first_s, gaps = ttft_s(request), gaps_s(request)
    if goals.ttft_slo_s is not None and (first_s is None or first_s > goals.ttft_slo_s):
        return False
    return goals.tbt_slo_s is None or not gaps.size or float(np.quantile(gaps, TBT_QUANTILE)) <= goals.tbt_slo_s


def is_idle(trial: Trial) -> bool:
    """Whether the server had next to nothing to do, so that less would change nothing; a server that rejects says otherwise, unless it rejects all."""
    if not trial.completed:
        return True
    busy_s = sum(each.end_s - each.arrival_s for each in trial.completed)
    is_rejecting = any(each.failure is not None and each.failure.is_rejection for each in trial.run.ended)
    return not is_rejecting and busy_s < IDLE_REQUESTS * max(each.end_s for each in trial.run.ended)


def pooled_gaps_s(trial: Trial) -> np.ndarray:
    """f64[gaps of all requests that ended well]."""
    return np.concatenate([np.empty(0), *map(gaps_s, trial.completed)])


def trial_json(trial: Trial, goals: Goals) -> dict[str, Any]:
    """One trial, in our names, and in those of `vllm bench serve` where they mean the same."""
    completed = trial.completed
    failed = [each.failure for each in trial.run.ended if each.failure is not None]
    values = {
        "ttft_s": _known(map(ttft_s, completed)),
        "tbt_s": pooled_gaps_s(trial),
        "tpot_s": _known(map(tpot_s, completed)),
        "e2e_s": np.array([each.end_s - each.arrival_s for each in completed]),
    }
    duration_s = max((each.end_s for each in trial.run.ended), default=0.0)
    report: dict[str, Any] = {
        "request_rate": trial.rate,
        "concurrency": trial.concurrency,
        "is_interrupted": trial.is_interrupted,
        "num_requests": trial.num_requests,
        "num_completed": len(completed),
        "num_rejected": sum(each.is_rejection for each in failed),
        "num_failed": sum(not each.is_rejection for each in failed),
        "errors": dict(Counter(each.kind for each in failed)),
        "first_error": failed[0].message if failed else None,
        "duration_s": duration_s,
        "num_prompt_tokens": sum(each.num_prompt_tokens for each in completed),
        "num_output_tokens": sum(each.num_output_tokens for each in completed),
        "num_token_chunks": sum(len(each.token_times_s) for each in completed),
        "latencies": {name: percentiles(each.tolist()) for name, each in values.items()},
        "client_lag_s": percentiles(each.sent_s - each.arrival_s for each in trial.run.ended),
        "client_cpu_share": trial.cpu_share,
        "backlog_drift": _backlog_drift(trial.run.ended),
    }
    return {**report, **_rates(report), **_kept(trial, report, goals), **_vllm_json(report, values)}


def _rates(report: dict[str, Any]) -> dict[str, float]:
    duration_s = report["duration_s"] or float("inf")
    num_tokens = report["num_prompt_tokens"] + report["num_output_tokens"]
    return {
        "requests_per_s": report["num_completed"] / duration_s,
        "output_tokens_per_s": report["num_output_tokens"] / duration_s,
        "total_tokens_per_s": num_tokens / duration_s,
    }


def _kept(trial: Trial, report: dict[str, Any], goals: Goals) -> dict[str, Any]:
    """Goodput, and whether the load holds; None without goals."""
    if not goals.are_given:
        return {"goodput": None, "does_hold": None}
    num_good = sum(is_good(each, goals) for each in trial.completed)
    first, between = report["latencies"]["ttft_s"], report["latencies"]["tbt_s"]
    goodput = {
        "ttft_slo_s": goals.ttft_slo_s,
        "tbt_slo_s": goals.tbt_slo_s,
        "num_good": num_good,
        "requests_per_s": num_good / report["duration_s"] if report["duration_s"] else 0.0,
        "share": num_good / len(trial.run.ended) if trial.run.ended else 0.0,
    }
    does_hold = (
        report["num_completed"] == trial.num_requests
        and first is not None
        and first["p50"] <= goals.max_median_ttft_s
        and (goals.ttft_slo_s is None or first["p99"] <= goals.ttft_slo_s)
        and (goals.tbt_slo_s is None or between is None or between["p99"] <= goals.tbt_slo_s)
    )
    return {"goodput": goodput, "does_hold": does_hold}


def _vllm_json(report: dict[str, Any], values: dict[str, np.ndarray]) -> dict[str, Any]:
    rates = _rates(report)
    found: dict[str, Any] = {
        "completed": report["num_completed"],
        "failed": report["num_rejected"] + report["num_failed"],
        "num_prompts": report["num_requests"],
        "max_concurrency": report["concurrency"],
        "duration": report["duration_s"],
        "total_input_tokens": report["num_prompt_tokens"],
        "total_output_tokens": report["num_output_tokens"],
        "request_throughput": rates["requests_per_s"],
        "output_throughput": rates["output_tokens_per_s"],
        "total_token_throughput": rates["total_tokens_per_s"],
    }
    for ours, name in VLLM_NAMES.items():
        each = values[ours] * 1e3
        if each.size:
            found |= {f"mean_{name}_ms": float(each.mean()), f"median_{name}_ms": float(np.median(each))}
            found |= {f"std_{name}_ms": float(each.std())}
            found |= {f"p{rank}_{name}_ms": float(np.percentile(each, rank)) for rank in (90, 99)}
    return found


def _known(values: Any) -> np.ndarray:
    return np.array([each for each in values if each is not None], np.float64)


def _backlog_drift(ended: Sequence[SentRequest]) -> float | None:
    """Time from the first arrival to the last token, over the time in which requests arrived; None if they came at once."""
    arrivals = [each.arrival_s for each in ended]
    span_s = max(arrivals) - min(arrivals) if arrivals else 0.0
    return (max(each.end_s for each in ended) - min(arrivals)) / span_s if span_s else None
