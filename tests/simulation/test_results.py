"""What a run comes to, by docs/metrics.md, on times that are written out."""

import pytest

from sarathi_jax.simulation.results import RequestTimes, SimulationResult


def times(
    arrival_s: float, first_scheduled_s: float | None, *token_times_s: float, is_finished: bool = True
) -> RequestTimes:
    return RequestTimes(arrival_s, first_scheduled_s, token_times_s, 8, is_finished)


RESULT = SimulationResult(
    requests=[
        times(1.0, 1.5, 3.0, 4.0, 8.0),
        times(2.0, 5.0, 6.0),
        times(5.0, 8.0, 9.0, 9.5, is_finished=False),
        times(6.0, None, is_finished=False),
    ],
    steps=[],
    end_s=11.0,
    idle_s=0.0,
    num_absent=1,
)


def test_time_to_first_token_is_of_those_that_got_one() -> None:
    assert RESULT.ttft_s.tolist() == [2, 4, 4]


def test_gaps_of_all_requests_are_pooled_and_a_first_token_is_none() -> None:
    assert RESULT.tbt_s.tolist() == [1, 4, 0.5]


def test_f17_who_was_never_scheduled_has_waited_until_the_end() -> None:
    """The original counts requests that finish alone, and so looks best when it serves few. Who had not arrived at the end has not waited."""
    assert RESULT.scheduling_delay_s.tolist() == [0.5, 3, 3, 5]


def test_f17_unfinished_are_all_that_did_not_end() -> None:
    assert RESULT.num_unfinished == 3


def test_backlog_drift_is_how_long_serving_took_against_arriving() -> None:
    """Arrivals from 1 to 6, served from 1 to 11; and with all of them at once there is nothing to compare with."""
    assert RESULT.backlog_drift == pytest.approx(10 / 5)
    assert SimulationResult([times(2.0, 2.0, 3.0)] * 2, [], 4.0, 0.0).backlog_drift == float("inf")


def test_a_run_in_which_nobody_got_a_token_has_no_latencies() -> None:
    result = SimulationResult([times(0.0, None, is_finished=False)], [], 1.0, 0.0)
    assert (result.ttft_s.size, result.tbt_s.size, result.num_output_tokens) == (0, 0, 0)
