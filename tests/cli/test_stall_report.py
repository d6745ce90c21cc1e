"""What a stall run shows, where a step takes a second a token: all times are known beforehand."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from sarathi_jax.cli.stall_report import middle_of, report_of, table
from sarathi_jax.cli.stall_run import StallLoad, StallRun, run_stall_load
from sarathi_jax.cli.step_predictions import predict, prediction_report
from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.stalls import ScheduleKeeper
from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.policy import Policy
from sarathi_jax.scheduling.schedule import Schedule, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.service_levels import service_levels
from sarathi_jax.scheduling.step_profile import StepProfile, StepSample
from sarathi_jax.scheduling.step_times import StepTimeModel

# Decodes end when they have 4 + 12 tokens; the prompt arrives when they have 4.
LOAD = StallLoad(num_decodes=2, num_prompts=1, prompt_tokens=20, tokens_between=12, num_quiet_tokens=4)
WHOLE = 64


@dataclass
class Step:
    """A step that takes a second a token, and `history_s` for each token that stands before a chunk."""

    clock: VirtualClock
    schedule: Schedule
    history_s: float

    @property
    def bucket(self) -> "Step":
        return self

    name, num_rows = "fake", 0

    @property
    def num_tokens(self) -> int:
        return self.schedule.num_tokens

    def is_ready(self) -> bool:
        return True

    def result(self) -> StepResult:
        num_before = max((row.start for row in self.schedule.rows if row.num_tokens > 1), default=0)
        self.clock.advance(self.num_tokens + self.history_s * num_before)
        return StepResult([0] * len(self.schedule.rows))


@dataclass
class SecondATokenExecutor:
    clock: VirtualClock
    history_s: float

    def submit(self, schedule: Schedule) -> Step:
        return Step(self.clock, schedule, self.history_s)

    def close(self) -> None: ...


def run_under(policy: str | Policy, token_budget: int, load: StallLoad = LOAD, *, history_s: float = 0.0) -> StallRun:
    clock = VirtualClock()
    keeper = ScheduleKeeper(SecondATokenExecutor(clock, history_s))
    scheduler = Scheduler(
        policy, num_pages=64, token_budget=token_budget, max_num_seqs=4, max_model_len=40, vocab_size=9
    )
    engine = Engine(scheduler, keeper, clock, is_overlapped=False, tokenizer=None)
    return run_stall_load(engine, keeper, load, vocab_size=9)


def test_f10_under_sarathi_a_decode_waits_for_a_step_of_the_budget_at_most() -> None:
    """A step of 8 tokens holds both decodes and 6 of the prompt's 20: it is read in 4 steps, of 8, 8, 8 and 4 s."""
    report = report_of("sarathi", 8, run_under("sarathi", 8))
    assert (report.num_stalls, report.steps_read, report.steps_waited) == (0, [4], [0])
    assert (report.decode_step_s, report.budget_step_s, report.prompt_step_s) == (2.0, 8.0, 8.0)
    assert report.last_budget_step_s == 8.0
    assert report.tbt_s["max"] == 8.0
    assert report.max_tbt_over_goal == 1.0
    assert report.max_tokens_between == 8
    assert report.ttft_s == [8 + 8 + 8 + 4]


def test_the_longest_wait_is_compared_with_the_last_full_step_of_a_prompt() -> None:
    """Its steps stand after 0, 6, 12 and 18 tokens, and take half a second more for each: 8, 11 and 14 s, and 4 + 9 for the rest."""
    report = report_of("sarathi", 8, run_under("sarathi", 8, history_s=0.5))
    assert (report.budget_step_s, report.last_budget_step_s, report.tbt_s["max"]) == (11.0, 14.0, 14.0)
    assert report.max_tbt_over_goal == 1.0


def test_f10_under_vllm_a_decode_waits_longer_than_the_whole_prompt_takes() -> None:
    """The prompt's 20 tokens, then a step of both decodes and the prompt's own."""
    report = report_of("vllm", WHOLE, run_under("vllm", WHOLE))
    assert (report.num_stalls, report.decode_stalls, report.steps_read) == (2, [1, 1], [1])
    assert report.prompt_step_s == 20.0
    assert report.tbt_s["max"] == 20 + 3
    assert (report.max_tokens_between, report.num_hybrid_steps) == (20 + 3, 0)
    assert report.ttft_s == [20.0]


def test_the_prompt_arrives_when_both_decodes_have_their_quiet_tokens() -> None:
    """One step reads both their prompts and brings the first token, three more bring the others."""
    assert run_under("vllm", WHOLE).num_steps_before == [4]


def test_a_budget_step_is_one_of_exactly_that_many_tokens() -> None:
    """A prompt of 8 is read in steps of 2 + 6 and 2 + 2 tokens."""
    report = report_of("sarathi", 8, run_under("sarathi", 8, replace(LOAD, prompt_tokens=8)))
    assert (report.budget_step_s, report.prompt_step_s) == (8.0, 6.0)


@pytest.mark.parametrize(
    ("policy", "budget", "longest_s"),
    [
        ("sarathi", 8, 8),
        ("orca", WHOLE, 2 + 20),
        ("vllm", WHOLE, 20 + 3),
        ("request_level", WHOLE, 2),
        ("alternating", 8, 8 + 2),
    ],
)
def test_f11_the_slowdown_is_the_longest_wait_beside_a_prompt_over_a_wait_without(
    policy: str, budget: int, longest_s: float
) -> None:
    report = report_of(policy, budget, run_under(policy, budget))
    assert report.quiet_tbt_s == 2.0
    assert report.slowdown == longest_s / 2


def test_each_policy_gets_the_verdict_that_the_paper_gives_it() -> None:
    budgets = {"sarathi": 8, "vllm": WHOLE, "orca": WHOLE, "request_level": WHOLE, "alternating": 8}
    reports = [report_of(policy, budget, run_under(policy, budget)) for policy, budget in budgets.items()]
    assert [each.verdict.split(":")[0] for each in reports] == [
        "stall-free",
        "stalls",
        "nobody is left out, but prompts are read whole",
        "no stalls, but prompts wait until the decodes have ended",
        "stalls",
    ]
    assert [line.split()[:3] for line in table(reports).splitlines()[1:4]] == [
        ["sarathi", "8", "0"],
        ["vllm", "64", "2"],
        ["orca", "64", "0"],
    ]


@pytest.mark.parametrize(("slo_s", "longest_s"), [(10.0, 8.0), (20.0, 16.0), (40.0, 22.0)])
def test_f10_under_slo_a_decode_waits_for_the_largest_step_within_its_goal_at_most(
    slo_s: float, longest_s: float
) -> None:
    """Steps of 8, 16 and 32 tokens are compiled, and nine tenths of the goal are used: the prompt's 20 tokens are read by 6, by 14, or at once."""
    times = StepTimeModel.fit(profile_of(1.0))
    run = run_under(SloPolicy(times, service_levels(slo_s), sizes=(8, 16, 32, WHOLE)), WHOLE)
    report = report_of("slo", WHOLE, run, slo_s)
    assert report.num_stalls == 0
    assert report.tbt_s["max"] == longest_s <= slo_s


def test_an_slo_is_what_the_longest_wait_is_compared_with() -> None:
    assert report_of("slo", 8, run_under("sarathi", 8), tbt_slo_s=16.0).max_tbt_over_goal == 0.5


def test_the_run_in_the_middle_is_told_of() -> None:
    run = run_under("sarathi", 8)
    report = report_of("sarathi", 8, run)
    runs = [
        (replace(report, num_steps=number, tbt_s={"max": each}), run) for number, each in enumerate([3.0, 9.0, 5.0])
    ]
    assert middle_of(runs)[0].num_steps == 2


def test_a_load_needs_prompts() -> None:
    with pytest.raises(ConfigError, match="num_prompts must be at least 1, got 0: pass a positive number"):
        StallLoad(num_prompts=0)


# ---- predictions


def profile_of(seconds_a_token: float) -> StepProfile:
    """Steps that take so long a token, whatever rows and contexts they have."""
    decodes = [(size, size, size, context) for size in (1, 2, 4) for context in (size, 100)]
    chunks = [(size, rows, 0, pairs) for size in (4, 8, 16, 32) for rows in (1, 2) for pairs in (0, 100)]
    samples = [
        StepSample(
            num_tokens=size,
            num_rows=rows,
            num_decodes=num_decodes,
            decode_context=attended if num_decodes else 0,
            chunk_pairs=0 if num_decodes else attended,
            median_s=seconds_a_token * size,
            p99_s=seconds_a_token * size,
            num_repeats=1,
        )
        for size, rows, num_decodes, attended in decodes + chunks
    ]
    place: dict[str, Any] = dict.fromkeys(
        ("model", "device", "mesh", "dtype", "kv_dtype", "kernels", "jax_version"), ""
    )
    limits: dict[str, Any] = {"token_budget": 8, "max_num_seqs": 4, "max_model_len": 40, "num_kv_tokens": 1024}
    return StepProfile(**place, **limits, samples=tuple(samples))


def test_predictions_of_a_profile_that_holds_are_right_and_stay_so() -> None:
    run = run_under("sarathi", 8)
    steps = predict(StepTimeModel.fit(profile_of(1.0)), [(run.schedules, run.records)])[0]
    assert [each.taken_s for each in steps] == [each.num_tokens for each in steps]
    report = prediction_report(steps)
    assert (report["num_steps"], report["median_error"]) == (len(run.schedules), pytest.approx(0.0, abs=1e-6))
    assert report["p90_error"] == pytest.approx(0.0, abs=1e-6)


def test_predictions_of_a_profile_of_a_faster_machine_become_right() -> None:
    """Told that a token takes half a second, the model learns that it takes one."""
    run = run_under("sarathi", 8)
    first, *_, last = predict(StepTimeModel.fit(profile_of(0.5)), [(run.schedules, run.records)] * 10)
    # It learns from the third step of a size on; what was said of that one was said before.
    same = [each for each in first if each.num_tokens == first[2].num_tokens][:3]
    assert [each.predicted_s for each in same] == pytest.approx([each.taken_s / 2 for each in same])
    report = prediction_report(last)
    assert report["median_error_without_learning"] == pytest.approx(0.5)
    assert report["median_error"] < 0.02
