"""Whole simulated runs of two requests, counted by hand: a second a token, steps of at most four tokens."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sarathi_jax.errors import RequestError
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.pipelines import Passage
from sarathi_jax.simulation.results import SimulationResult
from sarathi_jax.simulation.run import SimulatedRequest, simulate
from sarathi_jax.simulation.workloads import RequestShape

type Make = Callable[..., Deployment]
TWO = [RequestShape(0.0, 6, 3), RequestShape(1.0, 3, 2)]


class StopAtOnce:
    """A judge that has seen enough."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, str, list[float]]] = []

    def is_decided(self, now_s: float, arrived: Sequence[SimulatedRequest], ended: SimulatedRequest) -> bool:
        self.seen.append((now_s, len(arrived), ended.request_id, ended.token_times_s.tolist()))
        return True


def token_times(result: SimulationResult) -> list[Any]:
    return [pytest.approx(each.token_times_s, abs=1e-12) for each in result.requests]


def step_mixes(result: SimulationResult) -> list[tuple[int, int]]:
    """(decode tokens, prefill tokens) of each step."""
    return [(step.num_decode_tokens, step.num_prefill_tokens) for step in result.steps]


@pytest.mark.parametrize("has_lock_step", [False, True])
def test_the_plain_loop_runs_one_step_at_a_time(make_deployment: Make, has_lock_step: bool) -> None:
    """Steps: 4 of A's prompt (0-4); the other 2 and 2 of B's (4-8); a decode and B's last (8-10); two decodes (10-12). One stage: both kinds of pipelines alike."""
    result = simulate(make_deployment(1.0, has_lock_step=has_lock_step), TWO)
    assert token_times(result) == [[8, 10, 12], [10, 12]]
    assert step_mixes(result) == [(0, 4), (0, 4), (1, 1), (2, 0)]
    assert [each.first_scheduled_s for each in result.requests] == [0, 4]
    assert (result.end_s, result.idle_s) == (12, 0)


def test_host_code_delays_every_step_of_the_plain_loop(make_deployment: Make) -> None:
    """Half a second a step and 0.1 s a row: steps start at 0.6, 5.3, 10, 12.7."""
    result = simulate(make_deployment(1.0, host_s=0.5, row_s=0.1), TWO)
    assert token_times(result) == [[9.3, 12, 14.7], [12, 14.7]]
    assert result.idle_s == pytest.approx(3 * 0.7)


@pytest.mark.parametrize("has_lock_step", [False, True])
def test_the_overlapped_loop_hides_host_code(make_deployment: Make, has_lock_step: bool) -> None:
    """The second step is scheduled at once, before B is here, and so holds A's 2 tokens alone: steps run 0.6-4.6, 4.6-6.6, then B's prompt and a decode
    (6.6-10.6) and two decodes (10.6-12.6). The device never waits after its first step."""
    deployment = make_deployment(1.0, host_s=0.5, row_s=0.1, is_overlapped=True, has_lock_step=has_lock_step)
    result = simulate(deployment, TWO)
    assert token_times(result) == [[6.6, 10.6, 12.6], [10.6, 12.6]]
    assert step_mixes(result) == [(0, 4), (0, 2), (1, 3), (2, 0)]
    assert result.idle_s == pytest.approx(0)


def test_host_code_that_takes_longer_than_the_device_sets_the_pace(make_deployment: Make) -> None:
    """10 s of host code a step, one after the other: the first step starts at 10 and the second at 20; each decode then starts 10 s after the one before."""
    result = simulate(make_deployment(1.0, host_s=10.0, is_overlapped=True), [RequestShape(0.0, 6, 3)])
    assert token_times(result) == [[22, 31, 41]]


def test_stages_in_series(make_deployment: Make) -> None:
    """Stages of 1 and 2 s a token. A: 4 tokens, 0-4 and 4-12. B: 2 tokens as soon as the first stage is free, 4-6 and, when A has left the second, 12-16. Then
    they decode in turn, a second each: A 12-13 and 16-18, B 16-17 and 18-20."""
    shapes = [RequestShape(0.0, 4, 2), RequestShape(1.0, 2, 2)]
    result = simulate(make_deployment(1.0, 2.0, has_lock_step=False), shapes)
    assert token_times(result) == [[12, 18], [16, 20]]
    assert [each.first_scheduled_s for each in result.requests] == [0, 4]
    assert result.idle_s == 6 + 3


def test_stages_in_lock_step(make_deployment: Make) -> None:
    """The same. Nobody else is there at 0, so A is driven through both stages, 0-4 and 4-12; B enters then, 12-14. A decodes beside B's second stage (14-18),
    B beside A's (18-20); nothing is left to enter, and B's last tick is its own (20-22)."""
    shapes = [RequestShape(0.0, 4, 2), RequestShape(1.0, 2, 2)]
    result = simulate(make_deployment(1.0, 2.0, has_lock_step=True), shapes)
    assert token_times(result) == [[12, 20], [18, 22]]
    assert result.idle_s == 4 + 8 + 2 + (4 - 1) + (2 - 1) + 2


@pytest.mark.parametrize("has_lock_step", [False, True])
@pytest.mark.parametrize(("policy", "ttft_s"), [("sarathi", 64), ("slo", 36)])
def test_f22_chunks_that_follow_one_another_go_through_all_stages_at_a_time(
    make_deployment: Make, policy: str, ttft_s: float, has_lock_step: bool
) -> None:
    """8 chunks of 4 s a stage: each through both stages before the next one begins; or 8 through the first, and the last one through the second."""
    deployment = make_deployment(1.0, 1.0, has_lock_step=has_lock_step, policy=policy)
    assert token_times(simulate(deployment, [RequestShape(0.0, 32, 1)])) == [[ttft_s]]


def test_who_arrives_while_the_first_stage_is_idle_starts_at_once(make_deployment: Make) -> None:
    """A is in the second stage (2-12) when B arrives at 5."""
    shapes = [RequestShape(0.0, 2, 1), RequestShape(5.0, 1, 1)]
    result = simulate(make_deployment(1.0, 5.0, has_lock_step=False), shapes)
    assert token_times(result) == [[12], [17]]
    assert result.requests[1].first_scheduled_s == 5


def test_who_arrives_while_nothing_runs_starts_at_once(make_deployment: Make) -> None:
    result = simulate(make_deployment(1.0), [RequestShape(2.0, 1, 1), RequestShape(7.5, 2, 1)])
    assert token_times(result) == [[3], [9.5]]
    assert result.idle_s == 7.5 - 3


def test_an_observer_sees_every_step_and_its_way(make_deployment: Make) -> None:
    """As in the test of stages in series: A, B, A's decode, B's decode."""
    seen: list[tuple[list[str], Passage]] = []

    def observe(schedule: Schedule, passage: Passage) -> None:
        seen.append(([row.request_id for row in schedule.rows], passage))

    shapes = [RequestShape(0.0, 4, 2), RequestShape(1.0, 2, 2)]
    simulate(make_deployment(1.0, 2.0, has_lock_step=False), shapes, observer=observe)
    assert [names for names, _ in seen] == [["0"], ["1"], ["0"], ["1"]]
    assert [passage.starts_s for _, passage in seen] == [[0, 4], [4, 12], [12, 16], [16, 18]]
    assert [(passage.ready_s, passage.done_s) for _, passage in seen] == [(0, 12), (4, 16), (12, 18), (16, 20)]


@pytest.mark.parametrize("options", [{}, {"is_overlapped": True}, {"has_lock_step": False}])
def test_all_get_all_of_their_tokens_even_where_pages_run_out(make_deployment: Make, options: dict[str, bool]) -> None:
    shapes = [RequestShape(float(index), 3 + index % 7, 1 + index % 9) for index in range(40)]
    token_s = (0.5,) if options.get("is_overlapped") else (0.5, 0.5)
    result = simulate(make_deployment(*token_s, num_kv_tokens=40, page_size=4, max_model_len=20, **options), shapes)
    assert [len(each.token_times_s) for each in result.requests] == [each.num_output_tokens for each in shapes]
    assert sum(each.num_preemptions for each in result.requests) > 0
    assert result.num_unfinished == 0


def test_a_judge_sees_who_has_arrived_whenever_somebody_ends_and_may_stop_the_run(make_deployment: Make) -> None:
    """Steps end at 4, 8, 12 and 16: with the fourth A and B do, when C has arrived too."""
    judge = StopAtOnce()
    result = simulate(make_deployment(1.0), [*TWO, RequestShape(3.0, 4, 9), RequestShape(99.0, 1, 1)], judge)
    assert judge.seen == [(16, 3, "0", [8, 12, 16]), (16, 3, "1", [12, 16])]
    assert (result.end_s, result.num_unfinished) == (16, 2)


def test_a_request_that_can_never_be_served_is_refused(make_deployment: Make) -> None:
    with pytest.raises(RequestError, match="leaves no room for output"):
        simulate(make_deployment(1.0), [RequestShape(0.0, 64, 1)])


def test_the_next_round_arrives_after_the_last_one_and_a_pause_and_finds_its_pages(make_deployment: Make) -> None:
    """A's tokens come at 8, 10, 12 as above; its next round arrives at 12 + 5. Its prompt is A's 6 tokens, A's 3 outputs and 3 more: of those 12, A computed 8
    (its last output is never read), two pages of four. The other 4 take one step of 4 s, and it decodes once more."""
    shapes = [RequestShape(0.0, 6, 3), RequestShape(0.0, 12, 2, after=0, think_s=5.0)]
    result = simulate(make_deployment(1.0, is_prefix_caching=True, page_size=4), shapes)
    first, second = result.requests
    assert second.arrival_s == pytest.approx(first.token_times_s[-1] + 5)
    assert second.num_prefix_hit_tokens == 8
    assert step_mixes(result)[-2:] == [(0, 4), (1, 0)]
    assert simulate(make_deployment(1.0, page_size=4), shapes).requests[1].num_prefix_hit_tokens == 0


def test_prompts_that_share_nothing_find_nothing(make_deployment: Make) -> None:
    shapes = [RequestShape(0.0, 9, 2), RequestShape(30.0, 9, 2), RequestShape(60.0, 9, 2)]
    result = simulate(make_deployment(1.0, is_prefix_caching=True, page_size=4), shapes)
    assert [each.num_prefix_hit_tokens for each in result.requests] == [0, 0, 0]


def test_who_has_not_arrived_when_a_run_is_stopped_counts_as_unfinished(make_deployment: Make) -> None:
    result = simulate(make_deployment(1.0), [*TWO, RequestShape(99.0, 1, 1)], StopAtOnce())
    assert (result.num_absent, result.num_unfinished) == (1, 1)


@pytest.mark.parametrize("was_enabled", [True, False])
def test_a_run_leaves_the_collector_as_it_was_and_nothing_to_collect(make_deployment: Make, was_enabled: bool) -> None:
    """It does without the collector while it lasts: of all its requests, with prefixes that they share and pages that run out, none may refer to itself."""
    shapes = [RequestShape(float(index), 3 + index % 7, 1 + index % 9) for index in range(400)]
    deployment = make_deployment(0.5, num_kv_tokens=40, page_size=4, max_model_len=20, is_prefix_caching=True)
    was_on = gc.isenabled()
    try:
        (gc.enable if was_enabled else gc.disable)()
        simulate(deployment, shapes[:40])
        gc.collect()
        simulate(deployment, shapes)
        assert gc.isenabled() == was_enabled
        assert gc.collect() < len(shapes) / 4, "there are cycles in each request"
        with pytest.raises(RequestError):
            simulate(make_deployment(1.0), [RequestShape(0.0, 64, 1)])
        assert gc.isenabled() == was_enabled
    finally:
        (gc.enable if was_on else gc.disable)()
