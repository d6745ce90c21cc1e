"""Policies under the same load on the same compiled steps, one after the other; and, predicted from a profile, what each of their steps would take."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sarathi_jax.cli.stall_report import StallReport, middle_of, report_of
from sarathi_jax.cli.stall_run import StallLoad, StallRun, run_stall_load
from sarathi_jax.cli.step_predictions import StepPrediction, predict
from sarathi_jax.config import EngineConfig
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.policy import Policy
from sarathi_jax.scheduling.service_levels import service_levels
from sarathi_jax.scheduling.step_profile import StepProfile
from sarathi_jax.scheduling.step_times import FitErrors, StepLoad, StepTimeModel, StepTimes, fit_errors

if TYPE_CHECKING:
    from sarathi_jax.cli.policy_engines import PolicyEngines

WARM_UP = StallLoad(num_decodes=2, num_prompts=1, prompt_tokens=8, tokens_between=2, num_quiet_tokens=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What is compared. budget: of policies that split prompts. tbt_slo_s: of `slo`; None: what the longest step of that budget should take.
    num_repeats: runs of each policy. num_profiled: repeats of each step of the profile; 0: no profile."""

    names: Sequence[str]
    budget: int
    load: StallLoad
    tbt_slo_s: float | None = None
    num_repeats: int = 1
    num_profiled: int = 5


class Contender(NamedTuple):
    """A policy, made anew for each run, so that none has learned from an earlier one. tbt_slo_s: what it is told to keep, if it is told anything."""

    make: Callable[[], Policy]
    token_budget: int
    tbt_slo_s: float | None = None


class Comparison(NamedTuple):
    """runs: of each policy the one in the middle. fit: of the step-time model to the profile that was measured before; predictions: of the steps of each
    policy's runs, all of them; None: no profile was asked for."""

    runs: Sequence[tuple[StallReport, StallRun]]
    fit: FitErrors | None
    predictions: Mapping[str, Sequence[StepPrediction]] | None


def compare(config: EngineConfig, contest: Contest) -> Comparison:
    """Run the load under each policy. Policies take turns, so that a slow minute of the machine hits all of them. Raises: SarathiError."""
    from sarathi_jax.cli.policy_engines import policy_engines  # here: jax takes over a second to import

    found: list[tuple[StallReport, StallRun]] = []
    with policy_engines(config, progress=sys.stderr.isatty()) as engines:
        profile = engines.profile(contest.num_profiled) if contest.num_profiled else None
        contenders = {name: _contender(name, contest, engines, profile) for name in contest.names}
        for repeat in range(-1, contest.num_repeats):  # the first steps of a process are slower than the rest
            load = WARM_UP if repeat < 0 else contest.load
            for name, (make, token_budget, tbt_slo_s) in contenders.items():
                engine, keeper = engines.engine(make(), token_budget)
                run = run_stall_load(engine, keeper, load, engines.vocab_size)
                if repeat >= 0:
                    found.append((report_of(name, token_budget, run, tbt_slo_s), run))
    runs = [middle_of([each for each in found if each[0].policy == name]) for name in contest.names]
    if profile is None:
        return Comparison(runs, None, None)
    times = StepTimeModel.fit(profile)
    fit = fit_errors(times, profile)
    predictions: dict[str, list[StepPrediction]] = {name: [] for name in contest.names}
    for (report, _), steps in zip(
        found, predict(times, [(run.schedules, run.records) for _, run in found]), strict=True
    ):
        predictions[report.policy] += steps
    return Comparison(runs, fit, predictions)


def _contender(name: str, contest: Contest, engines: "PolicyEngines", profile: StepProfile | None) -> Contender:
    if name != "slo":
        make = partial(make_policy, name)
        return Contender(make, engines.budget_for(make(), contest.budget))
    tbt_slo_s = contest.tbt_slo_s
    if tbt_slo_s is None:
        assert profile is not None, "the command has asked for a goal where there is no profile"
        tbt_slo_s = longest_step_s(StepTimeModel.fit(profile), contest.budget, contest.load)

    def make_slo() -> SloPolicy:
        times = None if profile is None else StepTimeModel.fit(profile)
        return SloPolicy(times, service_levels(tbt_slo_s), sizes=engines.mixed_sizes)

    return Contender(make_slo, engines.config.step_tokens, tbt_slo_s)


def longest_step_s(times: StepTimes, token_budget: int, load: StallLoad) -> float:
    """What a step of so many tokens should take with all decodes at the end of theirs, and the last of a prompt."""
    num_decodes = load.num_decodes
    chunk = min(token_budget - num_decodes, load.prompt_tokens)
    pairs = chunk * (load.prompt_tokens - chunk + chunk / 2)
    context = num_decodes * (load.decode_prompt_tokens + load.decode_output_tokens)
    return times.seconds(StepLoad(chunk + num_decodes, num_decodes + 1, num_decodes, context, pairs))
