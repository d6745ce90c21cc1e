"""F27: chunks and decodes take turns."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import StepResult
from sarathi_jax.scheduling.scheduler import Scheduler

Make = Callable[..., Any]
PLAIN: dict[str, Any] = {"policy": "alternating", "is_prefix_caching": False}
TRACES = st.lists(st.tuples(st.integers(1, 60), st.integers(2, 20), st.integers(0, 8)), min_size=2, max_size=16)


def steps(stepper: Any) -> list[str]:
    return [" ".join(f"{row.request_id}{row.num_tokens}" for row in each.rows) for each in stepper.drain()]


def test_f27_with_nobody_to_decode_prompts_take_every_step(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("A", 40, max_tokens=2), **PLAIN)
    assert steps(stepper) == ["A16", "A16", "A8", "A1"]


def test_f27_with_nothing_to_read_decodes_take_every_step(make_request: Make, make_stepper: Make) -> None:
    assert steps(make_stepper(make_request("A", 4, max_tokens=4), **PLAIN)) == ["A4", "A1", "A1", "A1"]


def test_f27_a_chunk_has_the_whole_budget_whoever_decodes(make_request: Make, make_stepper: Make) -> None:
    """`sarathi` would give C chunks of 14 beside A and B."""
    stepper = make_stepper(*[make_request(name, 8, max_tokens=3) for name in "AB"], **PLAIN)
    stepper.step()
    stepper.scheduler.add(make_request("C", 32, max_tokens=1))
    assert steps(stepper) == ["A1 B1", "C16", "A1 B1", "C16"]


def test_f27_a_last_chunk_of_one_token_is_a_prompts_turn(make_request: Make, make_stepper: Make) -> None:
    """A chunk of one looks like a decode in the schedule."""
    stepper = make_stepper(make_request("A", 4, max_tokens=4), **PLAIN)
    stepper.step()
    stepper.scheduler.add(make_request("B", 17, max_tokens=2))
    assert steps(stepper) == ["A1", "B16", "A1", "B1", "A1 B1"]


def test_f27_a_decode_that_has_to_go_leaves_its_turn_to_a_prompt(make_request: Make, make_stepper: Make) -> None:
    """ "old" reads and holds 10 of 11 pages; when "asks", which is younger, finds no page at its turn, it goes itself."""
    options = {**PLAIN, "num_pages": 11, "watermark": 0.0, "long_prefill_token_threshold": 4}
    stepper = make_stepper(make_request("old", 40, max_tokens=1), make_request("asks", 4), **options)
    stepper.step()
    schedule, _ = stepper.step()
    assert schedule.preempted_request_ids == ("asks",)
    assert [(row.request_id, row.num_tokens) for row in schedule.rows] == [("old", 4)]


def test_defect_3_a_partial_prompt_can_be_the_victim(make_request: Make, make_stepper: Make) -> None:
    options = {**PLAIN, "num_pages": 11, "watermark": 0.0}
    stepper = make_stepper(make_request("old", 4), make_request("young", 40, max_tokens=1), **options)
    stepper.step()
    schedule, _ = stepper.step()
    assert schedule.preempted_request_ids == ("young",)
    assert [row.request_id for row in schedule.rows] == ["old"]


def trace_requests(trace: list[tuple[int, int, int]]) -> list[tuple[int, Request]]:
    """(step of arrival, request)"""
    step, requests = 0, []
    for index, (num_prompt_tokens, max_tokens, gap) in enumerate(trace):
        step += gap
        sampling = SamplingParams(max_tokens=max_tokens)
        prompt = [index] * num_prompt_tokens
        requests.append((step, Request(str(index), prompt, sampling, arrival_s=step, seed=0, max_tokens=max_tokens)))
    return requests


@given(TRACES)
def test_f27_a_decode_waits_for_one_chunk_at_most(trace: list[tuple[int, int, int]]) -> None:
    scheduler = Scheduler(
        "alternating", num_pages=999, page_size=4, token_budget=16, max_num_seqs=8, max_model_len=99, vocab_size=100
    )
    arrivals, step, num_left_out = trace_requests(trace), 0, 0
    while arrivals or scheduler.has_unfinished:
        while arrivals and arrivals[0][0] <= step:
            scheduler.add(arrivals.pop(0)[1])
        decoding = {request.request_id for request in scheduler.view(0.0).running if not request.is_prefilling}
        schedule = scheduler.schedule(float(step))
        if schedule is not None:
            is_left_out = not decoding <= {row.request_id for row in schedule.rows}
            num_left_out = num_left_out + 1 if is_left_out else 0
            assert num_left_out <= 1
            scheduler.complete(schedule, StepResult([1] * len(schedule.rows)), float(step))
        step += 1
