"""F17: the search for capacity, on a queue whose answer is known in closed form; and the judge, which may save time and must not change an answer."""

import math
from array import array
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation import capacity
from sarathi_jax.simulation.arrivals import with_poisson_arrivals
from sarathi_jax.simulation.capacity import CapacityJudge, Criterion, KnownTrials, judged, run_trial, search_capacity
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.lengths import Synthetic
from sarathi_jax.simulation.rate_search import MAX_TRIALS, Trial, find_capacity
from sarathi_jax.simulation.results import RequestTimes, SimulationResult
from sarathi_jax.simulation.run import SimulatedRequest, simulate
from sarathi_jax.simulation.workloads import RequestShape

type Make = Callable[..., Deployment]
CRITERION = Criterion(tbt_slo_s=1.0, max_median_delay_s=2.0)


def waits_s(arrivals_s: np.ndarray, service_s: float) -> np.ndarray:
    """Of each customer of one server, by Lindley's recursion in closed form: the largest excess of service over time since any arrival before."""
    excess = service_s * np.arange(len(arrivals_s)) - arrivals_s
    return excess - np.minimum.accumulate(excess)


def md1_trial(rate: float, *, service_s: float, num_requests: int) -> Trial:
    """A server that takes one request at a time, which gets its only token when it is served."""
    gaps = np.random.default_rng(5).standard_exponential(num_requests)
    arrivals_s = np.cumsum(gaps / gaps.mean()) / rate
    starts_s = arrivals_s + waits_s(arrivals_s, service_s)
    requests = [
        RequestTimes(arrival, start, (start + service_s,), 1, True)
        for arrival, start in zip(arrivals_s.tolist(), starts_s.tolist(), strict=True)
    ]
    return judged(SimulationResult(requests, [], requests[-1].token_times_s[-1], 0.0), rate, CRITERION)


def md1_share_waiting_less(wait_s: float, rate: float, service_s: float) -> float:
    """P(W <= w) in M/D/1 (Crommelin, 1934; Tijms, A First Course in Stochastic Models, 9.6)."""
    terms = [rate * (k * service_s - wait_s) for k in range(int(wait_s // service_s) + 1)]
    return (1 - rate * service_s) * sum(term**k / math.factorial(k) * math.exp(-term) for k, term in enumerate(terms))


def md1_capacity(service_s: float) -> float:
    """The rate at which half of all wait at most two seconds."""
    low, high = 0.0, 1 / service_s
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if md1_share_waiting_less(2.0, rate, service_s) >= 0.5 else (low, rate)
    return low


@pytest.mark.parametrize("service_s", [0.8, 1.9])
@pytest.mark.parametrize("guess", [0.05, 30.0])
def test_f17_on_an_md1_queue_the_search_finds_the_rate_of_queueing_theory(service_s: float, guess: float) -> None:
    """To 2.5 %: half a percent is the search's, and the rest for 20,000 requests whose median wait is not quite the law's."""
    found = find_capacity(
        lambda rate: md1_trial(rate, service_s=service_s, num_requests=20_000), guess=guess, granularity=0.005
    )
    assert found.requests_per_s == pytest.approx(md1_capacity(service_s), rel=0.025)
    assert found.at is not None
    assert found.at.median_delay_s <= 2.0 < min(each.median_delay_s for each in found.trials if not each.does_hold)


def test_the_simulator_is_an_md1_queue_where_every_request_is_one_step(make_deployment: Make) -> None:
    """One request of four tokens a step of four tokens: the simulated delays are those of Lindley's recursion."""
    shapes = with_poisson_arrivals(Synthetic(max_prompt_tokens=4, max_output_tokens=1).draw(300, 0), 0.9, seed=3)
    result = simulate(make_deployment(0.25, max_num_seqs=1), shapes)
    wanted_s = waits_s(np.array([shape.arrival_s for shape in shapes]), 1.0)
    np.testing.assert_allclose(result.scheduling_delay_s, wanted_s, rtol=0, atol=1e-9)


def step_trial(rate: float, limit: float) -> Trial:
    return Trial(rate, rate <= limit, False, 0.1, 0.1, 0.1, 0.1, 1.0, 0)


@pytest.mark.parametrize("step", [2.0, 1.08])
@pytest.mark.parametrize("guess", [0.001, 0.9, 1.0, 70.0])
@pytest.mark.parametrize("limit", [0.013, 0.999, 1.0, 2.6, 41.0])
def test_f17_the_search_ends_within_its_granularity(limit: float, guess: float, step: float) -> None:
    found = find_capacity(lambda rate: step_trial(rate, limit), guess=guess, step=step)
    assert limit / 1.025 < found.requests_per_s <= limit
    assert found.at is not None
    assert (found.at.requests_per_s, found.at.does_hold) == (found.requests_per_s, True)
    assert len(found.trials) < MAX_TRIALS


@pytest.mark.parametrize("limit", [0.98, 1.02])
def test_a_good_guess_takes_fewer_trials_with_a_small_step(limit: float) -> None:
    """From 1: 1.08 or 1 / 1.08 is on the other side, and two halvings in ratio bring 8 % under 2.5 %."""
    assert len(find_capacity(lambda rate: step_trial(rate, limit), step=1.08).trials) == 4
    assert len(find_capacity(lambda rate: step_trial(rate, limit)).trials) == 7


@pytest.mark.parametrize("guess", [0.0936, 0.97, 1.0, 2.6503, 30.0])
@pytest.mark.parametrize(("share", "num_trials"), [(1.01, 2), (0.98, 2), (0.96, 4), (0.94, 4)])
def test_a_search_whose_steps_are_its_granularity_ends_when_two_rates_are_one_step_apart(
    guess: float, share: float, num_trials: int
) -> None:
    """Whatever the guess: 1.025 twice over is above 1.025 by rounding for some, and one more trial would tell nothing."""
    found = find_capacity(lambda rate: step_trial(rate, share * guess), guess=guess, step=1.025)
    assert len(found.trials) == num_trials


def test_f17_a_rate_that_nothing_holds_is_no_capacity() -> None:
    found = find_capacity(lambda rate: step_trial(rate, 0.0))
    assert (found.requests_per_s, found.at) == (0.0, None)
    assert len(found.trials) < MAX_TRIALS


def test_f17_a_rate_that_everything_holds_is_unbounded() -> None:
    found = find_capacity(lambda rate: step_trial(rate, float("inf")))
    assert found.requests_per_s == float("inf")
    assert found.at is found.trials[-1]
    assert len(found.trials) < MAX_TRIALS


def one_result(*, gap_s: float = 0.1, delay_s: float = 0.1, num_unfinished: int = 0) -> SimulationResult:
    """100 requests of 101 tokens, the first half served at once and the others after the delay, and the last ones unfinished."""
    requests = []
    for index in range(100):
        start_s = index + (delay_s if index >= 49 else 0.0)
        tokens = tuple(start_s + gap_s * k for k in range(101))
        requests.append(RequestTimes(float(index), start_s, tokens, 1, index < 100 - num_unfinished))
    return SimulationResult(requests, [], 200.0, 0.0)


def test_f17_what_a_rate_has_to_keep() -> None:
    held = judged(one_result(), 1.0, CRITERION)
    assert held.does_hold
    assert held.p99_tbt_s == pytest.approx(0.1)
    assert not judged(one_result(gap_s=1.01), 1.0, CRITERION).does_hold
    assert not judged(one_result(delay_s=2.5), 1.0, CRITERION).does_hold
    assert not judged(one_result(num_unfinished=1), 1.0, CRITERION).does_hold


@pytest.mark.parametrize("wrong", [{"tbt_slo_s": 0.0}, {"tbt_quantile": 1.0}, {"max_median_delay_s": -1.0}])
def test_a_criterion_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="above 0 and a quantile between 0 and 1"):
        Criterion(**{"tbt_slo_s": 1.0, **wrong})


# ---- the judge ----


def load(seed: int) -> list[RequestShape]:
    lengths = Synthetic(distribution="uniform", max_prompt_tokens=40, max_output_tokens=12).draw(80, seed)
    return with_poisson_arrivals(lengths, 1.0, seed)


def full_trial(deployment: Deployment, shapes: list[RequestShape], rate: float, criterion: Criterion) -> Trial:
    """A trial that nobody cuts short."""
    scaled = [shape._replace(arrival_s=shape.arrival_s / rate) for shape in shapes]
    return judged(simulate(deployment, scaled), rate, criterion)


def test_scouting_changes_where_a_search_begins_and_not_where_it_ends(
    make_deployment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, shapes = make_deployment(0.01, token_budget=8), load(7)
    criterion = replace(CRITERION, tbt_slo_s=0.08, max_median_delay_s=0.5)
    plain = search_capacity(deployment, shapes, criterion)
    assert plain == find_capacity(lambda rate: run_trial(deployment, shapes, rate, criterion))
    monkeypatch.setattr(capacity, "NUM_SCOUTS", 20)
    scouted = search_capacity(deployment, shapes, criterion)
    assert scouted.requests_per_s == pytest.approx(plain.requests_per_s, rel=0.025)
    assert scouted.trials[0].requests_per_s != 1.0


@pytest.mark.parametrize("slo_s", [0.045, 0.06, 0.2, 1.0])
def test_f17_cutting_trials_short_never_changes_a_verdict(make_deployment: Make, slo_s: float) -> None:
    """Rates from idle to overload; the criterion's two halves each decide in some of them."""
    deployment = make_deployment(0.01, token_budget=8)
    criterion = Criterion(tbt_slo_s=slo_s, tbt_quantile=0.9, max_median_delay_s=0.5)
    num_cut = 0
    for seed in range(3):
        for rate in np.geomspace(0.5, 20, 7).tolist():
            cut = run_trial(deployment, load(seed), rate, criterion)
            full = full_trial(deployment, load(seed), rate, criterion)
            assert cut.does_hold == full.does_hold, (seed, rate)
            assert cut.is_cut_short or cut == full
            num_cut += cut.is_cut_short
    assert num_cut >= 3


def arrived(index: int, delay_s: float | None, gap_s: float = 0.0) -> SimulatedRequest:
    """Of 50 tokens, arrived at 0, and scheduled after a while or not yet."""
    request = SimulatedRequest(index, RequestShape(0.0, 1, 51), [0], 0.0)
    request.first_scheduled_s = delay_s
    request.token_times_s = array("d", [gap_s * k for k in range(51)])
    return request


@pytest.mark.parametrize(("num_long", "is_decided"), [(5, False), (6, False), (7, True), (10, True)])
def test_f17_the_judge_waits_until_more_than_half_have_waited_too_long(num_long: int, is_decided: bool) -> None:
    """Of ten requests five may be late: the median then lies between an early and a late one. One more is the margin."""
    requests = [arrived(index, 2.5 if index % 2 else None) for index in range(num_long)]
    requests += [arrived(index, 1.5) for index in range(num_long, 10)]
    judge = CapacityJudge(CRITERION, [RequestShape(0.0, 1, 51)] * 10)
    assert judge.is_decided(2.25, requests[:1], requests[9]) is False
    assert judge.is_decided(2.25, requests, requests[9]) is is_decided


@pytest.mark.parametrize(("num_slow", "is_decided"), [(1, False), (2, True)])
def test_f17_the_judge_waits_until_the_gaps_over_the_slo_are_too_many(num_slow: int, is_decided: bool) -> None:
    """A tenth of 500 gaps may be slow, and one more: one request's 50 are not too many, two requests' 100 are."""
    criterion = replace(CRITERION, tbt_quantile=0.9)
    judge = CapacityJudge(criterion, [RequestShape(0.0, 1, 51)] * 10)
    ended = [arrived(index, 0.0, gap_s=1.25) for index in range(num_slow)]
    assert [judge.is_decided(9.0, ended, each) for each in ended][-1] is is_decided


def test_f17_capacity_is_the_same_with_and_without_cutting_short(make_deployment: Make) -> None:
    deployment, shapes = make_deployment(0.01, token_budget=8), load(7)
    criterion = replace(CRITERION, tbt_slo_s=0.08, max_median_delay_s=0.5)
    cut = find_capacity(lambda rate: run_trial(deployment, shapes, rate, criterion))
    full = find_capacity(lambda rate: full_trial(deployment, shapes, rate, criterion))
    assert cut.requests_per_s == full.requests_per_s > 0
    assert [each.does_hold for each in cut.trials] == [each.does_hold for each in full.trials]
    assert any(each.is_cut_short for each in cut.trials)


@pytest.mark.parametrize(
    ("slos_s", "share"), [((0.02, 0.045, 0.08, 1.0), 0.95), ((1.0, 0.08, 0.045, 0.02), 0.75)], ids=["laxer", "stricter"]
)
def test_f17_trials_that_another_criterion_made_change_no_capacity(
    make_deployment: Make, monkeypatch: pytest.MonkeyPatch, slos_s: tuple[float, ...], share: float
) -> None:
    """One goal after the other: the same rates are tried, the same ones hold, and fewer are run, most of all if the laxest goal comes first."""
    deployment, shapes, rates_run = make_deployment(0.01, token_budget=8), load(7), list[float]()

    def run(deployment: Deployment, shapes: list[RequestShape], rate: float, criterion: Criterion) -> Trial:
        rates_run.append(rate)
        return run_trial(deployment, shapes, rate, criterion)

    monkeypatch.setattr(capacity, "run_trial", run)
    known, num_run = KnownTrials(), [0, 0]
    for slo_s in slos_s:
        criterion = replace(CRITERION, tbt_slo_s=slo_s, max_median_delay_s=0.5)
        alone = search_capacity(deployment, shapes, criterion)
        num_run[0] += len(rates_run)
        rates_run.clear()
        found = search_capacity(deployment, shapes, criterion, known=known)
        num_run[1] += len(rates_run)
        rates_run.clear()
        assert (found.requests_per_s, found.at) == (alone.requests_per_s, alone.at)
        tried = [[(each.requests_per_s, each.does_hold) for each in one.trials] for one in (found, alone)]
        assert tried[0] == tried[1]
    assert num_run[1] <= share * num_run[0]


def test_f17_a_trial_tells_nothing_of_what_it_did_not_see() -> None:
    """One that was cut short tells of no laxer goal; none tells of another quantile, rate or number of requests."""
    lax, strict = replace(CRITERION, tbt_slo_s=1.0), replace(CRITERION, tbt_slo_s=0.5)
    whole = Trial(2.0, True, False, 0.7, 1.0, 0.1, 0.2, 1.0, 0)
    cut = replace(whole, requests_per_s=3.0, does_hold=False, is_cut_short=True, num_unfinished=9)
    known = KnownTrials()
    known.add(80, whole, lax)
    known.add(80, cut, strict)
    assert known.find(80, 2.0, lax) == whole
    assert known.find(80, 2.0, strict) == replace(whole, does_hold=False)
    assert known.find(80, 3.0, replace(strict, tbt_slo_s=0.4)) == cut
    assert known.find(80, 3.0, lax) is None
    assert known.find(80, 3.0, replace(strict, max_median_delay_s=3.0)) is None
    assert known.find(80, 2.0, replace(lax, tbt_quantile=0.9)) is None
    assert known.find(79, 2.0, lax) is None and known.find(80, 2.5, lax) is None
