"""What a stall run showed of a policy, as numbers, as a row of a table, and as a verdict. Counts depend on decisions alone, times on the machine besides."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from sarathi_jax.cli.stall_run import DECODE, PROMPT, StallRun
from sarathi_jax.engine.records import StepRecord, step_seconds
from sarathi_jax.engine.stalls import stalls_by_request
from sarathi_jax.outputs import RequestMetrics


class Gap(NamedTuple):
    """Between two tokens of one request."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class StallReport:
    """One policy's run.

    tbt_slo_s: what the policy was told to keep; None: it takes no such goal.
    num_stalls: steps that left out a running decode, from the first prompt's arrival on, summed over all requests; decode_stalls, prompt_stalls: by request, in the
    order of arrival.
    steps_waited: steps from each prompt's arrival until one read its first tokens. steps_read: steps that read some of it. num_hybrid_steps: that read prompts
    and held decodes. max_tokens_between: most tokens that went through the model from one token of a decode to its next.
    decode_step_s, budget_step_s, prompt_step_s: medians over steps of all decodes alone, before prompts arrived; of exactly the budget's tokens, with prompts in
    them; and of all with prompts in them. last_budget_step_s: the median over prompts of the last step of the budget's size that read them, which takes longest, as
    most of the prompt stands before it. None: there were none.
    quiet_tbt_s: median time between tokens of a decode before prompts arrived. tbt_s: percentiles of it and the longest, from the first arrival on.
    slowdown: the longest gap of a decode while a prompt waits and is read, over quiet_tbt_s; the median over prompts.
    ttft_s: of each prompt.
    """

    policy: str
    token_budget: int
    tbt_slo_s: float | None
    num_steps: int
    num_stalls: int
    decode_stalls: list[int]
    prompt_stalls: list[int]
    steps_waited: list[int]
    steps_read: list[int]
    num_hybrid_steps: int
    max_tokens_between: int
    decode_step_s: float | None
    budget_step_s: float | None
    last_budget_step_s: float | None
    prompt_step_s: float | None
    quiet_tbt_s: float
    tbt_s: dict[str, float]
    slowdown: float
    ttft_s: list[float]

    @property
    def max_tbt_over_goal(self) -> float | None:
        """The longest wait over the policy's SLO, or over the last step of the budget's size; None: it has neither."""
        goal_s = self.tbt_slo_s or self.last_budget_step_s
        return None if goal_s is None else self.tbt_s["max"] / goal_s

    @property
    def verdict(self) -> str:
        """By counts alone."""
        behind = f"behind {self.max_tokens_between} tokens at most"
        if most := max(self.decode_stalls):
            return f"stalls: a decode is left out of {most} steps; its next token comes {behind}"
        if not self.num_hybrid_steps:
            return f"no stalls, but prompts wait until the decodes have ended: {max(self.steps_waited)} steps"
        if max(self.steps_read) == 1:
            return f"nobody is left out, but prompts are read whole: a decode's next token comes {behind}"
        return f"stall-free: nobody is left out, and a decode's next token comes {behind}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "max_tbt_over_goal": self.max_tbt_over_goal, "verdict": self.verdict}


def report_of(policy: str, token_budget: int, run: StallRun, tbt_slo_s: float | None = None) -> StallReport:
    """Of a run of at least one prompt, that arrived when all decodes were running."""
    stalls = stalls_by_request(run.schedules[run.num_steps_before[0] - 1 :])
    read_by = _steps_reading(run)
    return StallReport(
        policy=policy,
        token_budget=token_budget,
        tbt_slo_s=tbt_slo_s,
        num_steps=len(run.schedules),
        num_stalls=stalls.total(),
        decode_stalls=[stalls[f"{DECODE}-{index}"] for index in range(run.load.num_decodes)],
        prompt_stalls=[stalls[f"{PROMPT}-{index}"] for index in range(run.load.num_prompts)],
        steps_waited=[reading[0] - before for reading, before in zip(read_by, run.num_steps_before, strict=True)],
        steps_read=[len(reading) for reading in read_by],
        max_tokens_between=_max_tokens_between(run),
        **_step_times(run, token_budget),
        **_waits(run),
        ttft_s=[_first_token_s(prompt) - prompt.arrival_s for prompt in run.prompts],
    )


def _step_times(run: StallRun, token_budget: int) -> dict[str, Any]:
    alone: list[float] = []
    with_prompts: list[tuple[StepRecord, float]] = []
    taken_s = step_seconds(run.records)
    for record, seconds in zip(run.records, taken_s, strict=True):
        if record.end_s > run.prompts[0].arrival_s:
            if record.num_prefill_tokens:
                with_prompts.append((record, seconds))
        elif record.num_decode_tokens == run.load.num_decodes and not record.num_prefill_tokens:
            alone.append(seconds)
    sizes = [each.num_tokens for each in run.schedules]
    last_full = [
        [taken_s[index] for index in indices if sizes[index] == token_budget][-1:] for indices in _steps_reading(run)
    ]
    return {
        "num_hybrid_steps": sum(each.num_decode_tokens > 0 for each, _ in with_prompts),
        "decode_step_s": _median(alone),
        "budget_step_s": _median(
            [
                seconds
                for each, seconds in with_prompts
                if each.num_prefill_tokens + each.num_decode_tokens == token_budget
            ]
        ),
        "last_budget_step_s": _median([seconds for each in last_full for seconds in each]),
        "prompt_step_s": _median([seconds for _, seconds in with_prompts]),
    }


def _waits(run: StallRun) -> dict[str, Any]:
    gaps = [gap for metrics in run.decodes for gap in gaps_of(metrics)]
    all_run_s, arrival_s = max(map(_first_token_s, run.decodes)), run.prompts[0].arrival_s
    quiet_tbt_s = median(gap.seconds for gap in gaps if gap.start_s >= all_run_s and gap.end_s <= arrival_s)
    longest = [
        max(
            (gap.seconds for gap in gaps if gap.end_s > prompt.arrival_s and gap.start_s < _first_token_s(prompt)),
            default=0.0,
        )
        for prompt in run.prompts
    ]
    late = [gap.seconds for gap in gaps if gap.end_s > arrival_s]
    p50, p99, longest_s = np.quantile(late, (0.5, 0.99, 1.0)).tolist()
    return {
        "quiet_tbt_s": quiet_tbt_s,
        "tbt_s": {"p50": p50, "p99": p99, "max": longest_s},
        "slowdown": median(longest) / quiet_tbt_s,
    }


def middle_of(runs: Sequence[tuple[StallReport, StallRun]]) -> tuple[StallReport, StallRun]:
    """Of several runs of one policy, the one whose longest wait is in the middle: one run's numbers, so that ratios are of things measured together."""
    return sorted(runs, key=lambda each: each[0].tbt_s["max"])[(len(runs) - 1) // 2]


def gaps_of(metrics: RequestMetrics) -> list[Gap]:
    """Between all tokens of a request, with the times they came at."""
    times_s = list(accumulate(metrics.tbt_s, initial=_first_token_s(metrics)))
    return [Gap(start_s, end_s) for start_s, end_s in pairwise(times_s)]


def _first_token_s(metrics: RequestMetrics) -> float:
    assert metrics.ttft_s is not None, "a request of this load gets all its tokens"
    return metrics.arrival_s + metrics.ttft_s


def _steps_reading(run: StallRun) -> list[list[int]]:
    """For each prompt, the numbers of the steps that read some of it, from 0."""
    found: dict[str, list[int]] = {f"{PROMPT}-{index}": [] for index in range(run.load.num_prompts)}
    for index, schedule in enumerate(run.schedules):
        for row in schedule.rows:
            if row.request_id in found and not row.num_output_tokens:
                found[row.request_id].append(index)
    return list(found.values())


def _max_tokens_between(run: StallRun) -> int:
    """Of all decodes, from the last step before a prompt arrived on."""
    num_tokens, last, largest = 0, dict[str, int](), 0
    for schedule in run.schedules[run.num_steps_before[0] - 1 :]:
        num_tokens += schedule.num_tokens
        for row in schedule.rows:
            if row.request_id.startswith(DECODE):
                largest = max(largest, num_tokens - last.get(row.request_id, num_tokens))
                last[row.request_id] = num_tokens
    return largest


def _median(seconds: Sequence[float]) -> float | None:
    return median(seconds) if seconds else None


def table(reports: Sequence[StallReport]) -> str:
    """A line a policy, and what it means below."""
    columns = ("budget", "stalls", "waited", "behind", "TBT p50", "p99", "max", "max/goal", "slowdown", "TTFT")
    lines = [f"{'':<15}" + "".join(f"{name:>10}" for name in columns)]
    for each in reports:
        ratio = each.max_tbt_over_goal
        cells = [
            str(each.token_budget),
            str(each.num_stalls),
            str(max(each.steps_waited)),
            str(each.max_tokens_between),
            *(f"{each.tbt_s[name] * 1e3:.1f}" for name in ("p50", "p99", "max")),
            "-" if ratio is None else f"{ratio:.2f}x",
            f"{each.slowdown:.1f}x",
            f"{median(each.ttft_s) * 1e3:.0f}",
        ]
        lines.append(f"{each.policy:<15}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join([*lines, "", *(f"{each.policy:<15}{each.verdict}" for each in reports)])
