"""Runs of Sarathi-Serve's evaluation (arXiv 2403.02310) at one load: its ablation (table 4), prompts that come amid decodes (figure 1), and a pipeline's bubbles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sarathi_jax.lab.paper_grid import Check
from sarathi_jax.lab.paper_setup import STRICT, deploy, load, paper_budget
from sarathi_jax.simulation.arrivals import at_rate
from sarathi_jax.simulation.bubbles import Bubbles
from sarathi_jax.simulation.lengths import FITTED
from sarathi_jax.simulation.microbatches import MicrobatchRecorder
from sarathi_jax.simulation.run import simulate
from sarathi_jax.simulation.series_bubbles import request_bubbles_s, series_bubbles
from sarathi_jax.simulation.step_work import StepWork, prefill_work
from sarathi_jax.simulation.workloads import RequestShape

# Table 4: Yi-34B, 128 requests; the artifact's rates and budget. Seconds, median TTFT and P99 TBT.
ABLATION_RATES = {"sharegpt": 1.0, "arxiv": 0.5}
ABLATION_REQUESTS, ABLATION_BUDGET = 128, 512
MEASURED_ABLATION = {
    ("hybrid batches alone", "sharegpt"): (0.53, 0.68),
    ("chunks alone", "sharegpt"): (1.04, 0.17),
    ("both", "sharegpt"): (0.76, 0.14),
    ("hybrid batches alone", "arxiv"): (3.78, 1.38),
    ("chunks alone", "arxiv"): (5.38, 0.20),
    ("both", "arxiv"): (3.90, 0.17),
}


@dataclass(frozen=True, slots=True)
class AblationRow:
    """measured_*: the paper's."""

    scheduler: str
    lengths: str
    median_ttft_s: float
    p99_tbt_s: float
    measured_ttft_s: float
    measured_tbt_s: float


@dataclass(frozen=True, slots=True)
class StallRow:
    """32 decodes, and prompts of 4,096 tokens among them. max_tbt_s: of the decodes. budget_step_s: a full step of the budget's tokens; prompt_s: of a whole prompt."""

    policy: str
    max_tbt_s: float
    budget_step_s: float
    prompt_s: float


@dataclass(frozen=True, slots=True)
class BubbleRow:
    """Median over requests of how long stages waited for the microbatches that it was in because they were unlike, and the shares of all stages' time by reason.

    max_num_seqs: requests that run at a time, at most."""

    policy: str
    max_num_seqs: int
    median_bubble_s: float
    busy_share: float
    prefill_size_share: float
    prefill_decode_share: float
    decode_context_share: float


def ablation_rows() -> list[AblationRow]:
    """Table 4. What batches hybrid without chunks: sarathi with a budget that holds the longest request."""
    rows: list[AblationRow] = []
    for (scheduler, lengths), measured in MEASURED_ABLATION.items():
        policy = "alternating" if scheduler == "chunks alone" else "sarathi"
        budget = FITTED[lengths].max_total_tokens if scheduler == "hybrid batches alone" else ABLATION_BUDGET
        engine = deploy("yi-34b", lengths, policy, budget)
        result = simulate(engine, at_rate(load(lengths, ABLATION_REQUESTS), ABLATION_RATES[lengths]))
        ttft_s, tbt_s = float(np.median(result.ttft_s)), float(np.quantile(result.tbt_s, 0.99))
        rows.append(AblationRow(scheduler, lengths, ttft_s, tbt_s, *measured))
    return rows


def ablation_checks(rows: Sequence[AblationRow]) -> list[Check]:
    """F16."""
    checks: list[Check] = []
    for lengths in ABLATION_RATES:
        hybrid, chunked, both = (
            next(row for row in rows if (row.scheduler, row.lengths) == (name, lengths))
            for name in ("hybrid batches alone", "chunks alone", "both")
        )
        got = f"{hybrid.median_ttft_s:.2f}, {both.median_ttft_s:.2f}, {chunked.median_ttft_s:.2f}"
        is_met = hybrid.median_ttft_s < both.median_ttft_s < chunked.median_ttft_s
        checks.append(Check(f"F16 {lengths}: median TTFT of hybrid, both, chunked", "ascending", got, is_met))
        got = f"{both.p99_tbt_s:.2f}, {chunked.p99_tbt_s:.2f}, {hybrid.p99_tbt_s:.2f}"
        is_met = both.p99_tbt_s <= chunked.p99_tbt_s and 4 * chunked.p99_tbt_s <= hybrid.p99_tbt_s
        wanted = "ascending, the last at least 4 times the second"
        checks.append(Check(f"F16 {lengths}: P99 TBT of both, chunked, hybrid", wanted, got, is_met))
    return checks


def stall_rows() -> list[StallRow]:
    """Figure 1a: what the decodes' readers see."""
    prompt_tokens, budget = 4096, paper_budget("mistral-7b", STRICT)
    decodes = [RequestShape(0.0, 64, 1500)] * 32
    prompts = [RequestShape(8.0 + 2.0 * index, prompt_tokens, 8) for index in range(4)]
    rows: list[StallRow] = []
    for policy in ("sarathi", "vllm", "orca"):
        options = {"max_num_seqs": 64} if policy == "orca" else {}
        engine = deploy("mistral-7b", "sharegpt", policy, budget if policy == "sarathi" else None, **options)
        result = simulate(engine, [*decodes, *prompts])
        gaps_s = np.concatenate(
            [np.diff(each.token_times_s) for each in result.requests if each.num_prompt_tokens < prompt_tokens]
        )
        model = engine.cost_model
        # The last chunk beside all decodes at their longest is the most that a step of the budget may take.
        work = prefill_work(budget - 32, prompt_tokens - budget + 32)
        full = StepWork(work.chunks, 32, 32 * 1564)
        prompt_s = model.step(prefill_work(prompt_tokens)).latency_s
        rows.append(StallRow(policy, float(gaps_s.max()), model.step(full).latency_s, prompt_s))
    return rows


def stall_checks(rows: Sequence[StallRow]) -> list[Check]:
    """F10."""
    by_policy = {row.policy: row for row in rows}
    sarathi, vllm = by_policy["sarathi"], by_policy["vllm"]
    return [
        Check(
            "F10 sarathi's longest time between tokens while prompts come",
            f"at most that of a step of the budget, {sarathi.budget_step_s:.3f} s",
            f"{sarathi.max_tbt_s:.3f} s",
            sarathi.max_tbt_s <= sarathi.budget_step_s,
        ),
        Check(
            "F10 vllm's",
            f"above that of a whole prompt, {vllm.prompt_s:.3f} s",
            f"{vllm.max_tbt_s:.3f} s",
            vllm.max_tbt_s > vllm.prompt_s,
        ),
    ]


def bubble_rows(num_requests: int = 512) -> list[BubbleRow]:
    """Falcon-180B over two stages, all requests at once, so that no stage waits for arrivals; Orca with the batch that Sarathi-Serve's authors give it, and with sarathi's
    own, as SARATHI (arXiv 2308.16369, section 5.3) compares the two. Requests have to be several batches, or most of the run is its beginning and its end."""
    rows: list[BubbleRow] = []
    sarathi = deploy("falcon-180b", "sharegpt", "sarathi", paper_budget("falcon-180b", STRICT))
    orca = deploy("falcon-180b", "sharegpt", "orca")
    batch = sarathi.max_num_seqs
    large_orca = replace(orca, max_num_seqs=batch, token_budget=batch * (orca.max_model_len + 1))
    for engine in (orca, large_orca, deploy("falcon-180b", "sharegpt", "vllm"), sarathi):
        recorder = MicrobatchRecorder()
        simulate(engine, [shape._replace(arrival_s=0.0) for shape in load("sharegpt", num_requests)], observer=recorder)
        model = engine.cost_model
        found = series_bubbles(recorder.microbatches, engine.num_stages, model.host, model.first_stage)
        total = sum(found, Bubbles())
        seconds = total.busy_s + total.idle_s
        rows.append(
            BubbleRow(
                str(engine.policy),
                engine.max_num_seqs,
                float(np.median(request_bubbles_s(recorder.microbatches, found))),
                total.busy_s / seconds,
                total.prefill_size_s / seconds,
                total.prefill_decode_s / seconds,
                total.decode_context_s / seconds,
            )
        )
    return rows


def bubble_checks(rows: Sequence[BubbleRow]) -> list[Check]:
    """F22, F23."""
    sarathi = next(row for row in rows if row.policy == "sarathi")
    orca = next(row for row in rows if (row.policy, row.max_num_seqs) == ("orca", sarathi.max_num_seqs))
    ratio = orca.median_bubble_s / sarathi.median_bubble_s if sarathi.median_bubble_s else float("inf")
    kinds = (orca.prefill_size_share, orca.prefill_decode_share, orca.decode_context_share)
    return [
        Check(
            f"F22 bubble time of a request, orca's over sarathi's with the same batch of {sarathi.max_num_seqs}",
            "above 2; SARATHI has 6.29 for GPT-3",
            f"{ratio:.2f}",
            ratio > 2,
        ),
        Check(
            "F23 orca's bubbles, by kinds PB1, PB2, PB3, as shares of all stages' time",
            "each above 0",
            ", ".join(f"{kind:.1%}" for kind in kinds),
            min(kinds) > 0,
        ),
    ]
