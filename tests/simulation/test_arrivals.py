"""When requests arrive, by themselves and after others."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.arrivals import ArrivalQueue, with_arrivals, with_poisson_arrivals
from sarathi_jax.simulation.lengths import Synthetic
from sarathi_jax.simulation.workloads import RequestShape

MANY = [RequestShape(0.0, 7, 3)] * 10_001


def gaps_s(shapes: list[RequestShape]) -> NDArray[np.float64]:
    return np.diff([shape.arrival_s for shape in shapes])


def test_poisson_arrivals_keep_order_and_rate() -> None:
    shapes = with_poisson_arrivals(MANY, 50.0, seed=0)
    assert shapes[0].arrival_s == 0.0
    assert np.all(gaps_s(shapes) >= 0)
    # Exponential: mean and standard deviation are both 1 / rate; 10,000 gaps, so 5 standard errors are 5 %.
    assert gaps_s(shapes).mean() == pytest.approx(0.02, rel=0.05)
    assert gaps_s(shapes).std() == pytest.approx(0.02, rel=0.05)
    # And memoryless: e ** -2 of them are longer than twice the mean, 1353 of 10,000 with a standard deviation of 34.
    assert abs((gaps_s(shapes) > 0.04).sum() - 1353) < 5 * 34


@pytest.mark.parametrize("variation", [0.25, 1.0, 3.0])
def test_gamma_gaps_have_the_variation_asked_for(variation: float) -> None:
    gaps = gaps_s(with_arrivals(MANY, 50.0, seed=0, process="gamma", gap_variation=variation))
    # The mean of 10,000 has a standard error of variation / 100 of it; that of the variation is about (1 + variation ** 2) / 141, for a gamma.
    assert gaps.mean() == pytest.approx(0.02, rel=5 * variation / 100)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=5 * (1 + variation**2) / 141)


def test_uniform_arrivals_are_evenly_spaced() -> None:
    shapes = with_arrivals(MANY[:5], 4.0, seed=0, process="uniform")
    assert [shape.arrival_s for shape in shapes] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_own_arrivals_are_stretched_to_the_rate() -> None:
    shapes = [RequestShape(arrival_s, 1, 1) for arrival_s in (10.0, 11.0, 11.0, 18.0, 14.0)]
    # Five requests in 8 s: gaps of 2 s on average, to be half a second.
    stretched = with_arrivals(shapes, 2.0, seed=0, process="own")
    assert [shape.arrival_s for shape in stretched] == [0.0, 0.25, 0.25, 2.0, 1.0]


def test_at_another_rate_the_same_gaps_are_scaled() -> None:
    shapes = Synthetic(distribution="uniform").draw(100, seed=0)
    slow, fast = (with_arrivals(shapes, rate, seed=7) for rate in (1.0, 4.0))
    assert [shape[1:] for shape in slow] == [shape[1:] for shape in fast] == [shape[1:] for shape in shapes]
    # A quarter is exact in binary.
    assert [shape.arrival_s for shape in fast] == [shape.arrival_s / 4 for shape in slow]
    assert slow != with_arrivals(shapes, 1.0, seed=8)


def test_conversations_start_so_rarely_that_all_rounds_come_to_the_rate() -> None:
    first, later = RequestShape(5.0, 1, 1), RequestShape(5.5, 3, 1, think_s=1.0)
    shapes = [first, later._replace(after=0), first, later._replace(after=2), first, later._replace(after=4)]
    placed = with_arrivals(shapes, 2.0, seed=0, process="uniform")
    # Two rounds each, so one start a second; half a second into it, at the earliest, the second round.
    assert [shape.arrival_s for shape in placed] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert [shape[1:] for shape in placed] == [shape[1:] for shape in shapes]


def test_one_request_and_none_arrive_at_once() -> None:
    for process in ("poisson", "gamma", "uniform"):
        assert with_arrivals(MANY[:1], 3.0, seed=0, process=process) == MANY[:1]
        assert with_arrivals([], 3.0, seed=0, process=process) == []


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_is_a_positive_number(rate: float) -> None:
    with pytest.raises(ConfigError, match="request_rate must be above 0, got"):
        with_arrivals(MANY, rate, seed=0)


@pytest.mark.parametrize(
    ("process", "variation", "text"),
    [
        ("bursts", 1.0, "arrivals must be one of poisson, gamma, uniform, own, got bursts"),
        ("gamma", 0.0, "gap_variation must be between 0.01 and 100, got 0.0"),
        ("gamma", float("nan"), "gap_variation must be between 0.01 and 100, got nan"),
        ("own", 1.0, "arrivals of the requests' own need different times, got all at once"),
    ],
)
def test_wrong_arrivals_are_refused(process: str, variation: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        with_arrivals(MANY, 1.0, seed=0, process=process, gap_variation=variation)


def test_the_queue_gives_requests_by_arrival_and_those_at_once_by_place() -> None:
    queue = ArrivalQueue([RequestShape(arrival_s, 1, 1) for arrival_s in (3.0, 1.0, 2.0, 1.0)])
    assert queue.next_arrival_s == 1.0
    assert [queue.pop() for _ in range(4)] == [(1.0, 1), (1.0, 3), (2.0, 2), (3.0, 0)]
    assert (len(queue), queue.next_arrival_s) == (0, float("inf"))


def test_a_round_arrives_when_the_one_before_has_ended_and_the_pause_is_over() -> None:
    rounds = [RequestShape(0.0, 1, 1), RequestShape(0.0, 3, 1, after=0, think_s=2.0)]
    queue = ArrivalQueue([*rounds, RequestShape(9.5, 5, 1, after=1, think_s=1.0)])
    assert queue.pop() == (0.0, 0)
    assert not queue
    queue.end(0, 5.0)
    assert queue.pop() == (7.0, 1)
    # Its own time is later than the pause's end.
    queue.end(1, 8.0)
    assert queue.pop() == (9.5, 2)
    queue.end(2, 11.0)
    assert not queue
