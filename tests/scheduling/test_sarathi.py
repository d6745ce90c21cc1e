"""What "implements Sarathi-Serve faithfully" means for the scheduler. F numbers are the statements in the project's reference on the paper."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.errors import ConfigError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler

Make = Callable[..., Any]
TRACES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 12)), min_size=1, max_size=24
)  # prompt tokens, output tokens, steps since the arrival before


def chunks(schedule: Schedule) -> list[tuple[str, int]]:
    return [(row.request_id, row.num_tokens) for row in schedule.rows]


def decoding_ids(scheduler: Scheduler) -> set[str]:
    return {request.request_id for request in scheduler.view(0.0).running if not request.is_prefilling}


def run_trace(trace: list[tuple[int, int, int]], check: Callable[[Schedule, set[str]], None], **options: Any) -> None:
    """Requests arrive by the trace; `check` sees each step and who was decoding before it."""
    scheduler = Scheduler("sarathi", max_model_len=128, vocab_size=100, page_size=4, **options)
    arrivals = [(sum(gap for _, _, gap in trace[: index + 1]), index) for index in range(len(trace))]
    step = 0
    while arrivals or scheduler.has_unfinished:
        while arrivals and arrivals[0][0] <= step:
            num_prompt_tokens, max_tokens, _ = trace[index := arrivals.pop(0)[1]]
            sampling = SamplingParams(max_tokens=max_tokens)
            prompt = [index] * num_prompt_tokens
            scheduler.add(Request(str(index), prompt, sampling, arrival_s=step, seed=0, max_tokens=max_tokens))
        decoding = decoding_ids(scheduler)
        schedule = scheduler.schedule(float(step))
        if schedule is not None:
            check(schedule, decoding)
            scheduler.complete(schedule, StepResult([1] * len(schedule.rows)), float(step))
        step += 1
        assert step < 5_000, "the scheduler makes no progress"


@given(TRACES)
def test_f1_every_step_holds_one_token_of_every_decode(trace: list[tuple[int, int, int]]) -> None:
    def check(schedule: Schedule, decoding: set[str]) -> None:
        scheduled = dict(chunks(schedule))
        assert {request_id: scheduled.get(request_id) for request_id in decoding} == dict.fromkeys(decoding, 1)

    run_trace(trace, check, num_pages=1000, token_budget=16, max_num_seqs=8)


@given(TRACES, st.integers(20, 60))
def test_f1_under_page_pressure_only_the_preempted_are_left_out(
    trace: list[tuple[int, int, int]], num_pages: int
) -> None:
    def check(schedule: Schedule, decoding: set[str]) -> None:
        assert decoding - set(schedule.preempted_request_ids) <= set(dict(chunks(schedule)))

    run_trace(trace, check, num_pages=num_pages, token_budget=16, max_num_seqs=8)


@given(TRACES, st.integers(8, 40))
def test_f2_decodes_and_chunks_never_exceed_the_budget(trace: list[tuple[int, int, int]], token_budget: int) -> None:
    def check(schedule: Schedule, decoding: set[str]) -> None:
        assert all(num_tokens >= 1 for _, num_tokens in chunks(schedule))
        assert schedule.num_tokens == sum(num_tokens for _, num_tokens in chunks(schedule)) <= token_budget

    run_trace(trace, check, num_pages=60, token_budget=token_budget, max_num_seqs=8)


def test_f2_a_budget_below_the_rows_is_refused(make_scheduler: Make) -> None:
    with pytest.raises(ConfigError, match="token_budget=64 must be >= max_num_seqs=128: every running request decodes"):
        make_scheduler(token_budget=64, max_num_seqs=128)


def test_f3_decodes_then_partial_prefills_then_new_requests(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("decode", 4), is_prefix_caching=False)
    stepper.step()
    stepper.scheduler.add(make_request("partial", 20))
    stepper.step()
    stepper.scheduler.add(make_request("new", 20))
    schedule, _ = stepper.step()
    assert chunks(schedule) == [("decode", 1), ("partial", 5), ("new", 10)]


def test_f3_none_is_admitted_while_an_older_prefill_gets_no_token(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("old", 60), make_request("new", 1), is_prefix_caching=False)
    steps = [chunks(stepper.step()[0]) for _ in range(4)]
    assert steps == [[("old", 16)], [("old", 16)], [("old", 16)], [("new", 1), ("old", 12)]]


def test_f3_partial_prefills_go_by_arrival(make_request: Make, make_stepper: Make) -> None:
    requests = [make_request(name, 40) for name in ("a", "b", "c")]
    stepper = make_stepper(*requests, is_prefix_caching=False, long_prefill_token_threshold=6)
    assert chunks(stepper.step()[0]) == [("a", 6), ("b", 6), ("c", 4)]
    assert chunks(stepper.step()[0]) == [("a", 6), ("b", 6), ("c", 4)]


def test_f4_a_chunk_is_the_remainder_or_what_the_budget_leaves(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 4), make_request("b", 30), is_prefix_caching=False)
    assert chunks(stepper.step()[0]) == [("a", 4), ("b", 12)]
    assert chunks(stepper.step()[0]) == [("a", 1), ("b", 15)]
    assert chunks(stepper.step()[0]) == [("a", 1), ("b", 3)]


@given(TRACES)
def test_f4_with_backlog_a_step_holds_the_whole_budget(trace: list[tuple[int, int, int]]) -> None:
    short_of_budget: list[Schedule] = []

    def check(schedule: Schedule, decoding: set[str]) -> None:
        is_partial = any(not row.does_sample for row in schedule.rows)
        if is_partial and schedule.num_tokens != 16:
            short_of_budget.append(schedule)

    run_trace(trace, check, num_pages=1000, token_budget=16, max_num_seqs=8)
    assert not short_of_budget


@given(TRACES)
def test_f27_with_a_budget_for_all_prompts_at_once_no_prompt_is_split(trace: list[tuple[int, int, int]]) -> None:
    """Hybrid batches without chunks: what the paper takes apart in table 4 is this policy with such a budget."""
    partial: list[ScheduledRow] = []

    def check(schedule: Schedule, decoding: set[str]) -> None:
        partial.extend(row for row in schedule.rows if not row.does_sample)

    run_trace(trace, check, num_pages=60, token_budget=8 * 128, max_num_seqs=8)
    assert not partial


def test_f8_the_step_that_ends_the_prompt_brings_the_first_token(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 40))
    outputs = [stepper.step(token_id=step)[1] for step in range(1, 4)]
    assert outputs[:2] == [[], []]
    assert [output.token_id for output in outputs[2]] == [3]


def test_f25_all_pages_of_a_prompt_are_reserved_at_admission(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 41))
    schedule, _ = stepper.step()
    assert len(schedule.rows[0].block_table) == 11
    assert stepper.scheduler.num_free_pages == 64 - 11


def test_f25_a_decode_takes_a_page_only_when_it_needs_one(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 7))
    num_pages = [len(stepper.step()[0].rows[0].block_table) for _ in range(6)]
    assert num_pages == [2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(("num_prompt_tokens", "is_admitted"), [(8, True), (9, False)])
def test_f25_an_admission_leaves_the_watermark(
    num_prompt_tokens: int, is_admitted: bool, make_request: Make, make_stepper: Make
) -> None:
    # 10 pages; 7 are taken; 10 % of 10 has to stay free, so that 2 are left for the second prompt.
    options = {"num_pages": 10, "watermark": 0.1, "is_prefix_caching": False, "token_budget": 64}
    stepper = make_stepper(make_request("a", 26), make_request("b", num_prompt_tokens), **options)
    assert ("b" in dict(chunks(stepper.step()[0]))) == is_admitted


def test_f25_the_watermark_is_waived_when_nothing_runs(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 40, max_tokens=1), num_pages=10, watermark=0.5, token_budget=64)
    assert chunks(stepper.step()[0]) == [("a", 40)]


@pytest.mark.parametrize(
    ("watermark", "num_pages", "num_kept_free"),
    [(0.01, 64, 1), (0.01, 100, 1), (0.01, 701, 8), (0.07, 100, 7), (0.0, 100, 0)],  # 0.07 * 100 > 7 in floating point
)
def test_f25_the_watermark_is_its_share_rounded_up(watermark: float, num_pages: int, num_kept_free: int) -> None:
    limits = SchedulerLimits(num_pages=num_pages, max_model_len=8, vocab_size=8, watermark=watermark)
    assert limits.num_watermark_pages == num_kept_free


def test_f25_the_victim_is_the_youngest(make_request: Make, make_stepper: Make) -> None:
    requests = [make_request(name, 4, max_tokens=20) for name in ("a", "b", "c")]
    stepper = make_stepper(*requests, num_pages=6, watermark=0.0, is_prefix_caching=False)
    victims = [stepper.step()[0].preempted_request_ids for _ in range(7)]
    # Each needs its second page at once in step 1, its third one in step 5: 6 pages, then "c" has to go.
    assert victims == [(), (), (), (), (), ("c",), ()]


def test_f25_a_preempted_request_computes_prompt_and_output_again(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 6), preempt_every_steps=4, is_prefix_caching=False)
    rows = [stepper.step(token_id=50 + step)[0].rows[0] for step in range(4)]
    assert (rows[3].start, rows[3].num_tokens, rows[3].is_first) == (0, 9, True)
    assert rows[3].token_ids == [1, 2, 3, 4, 5, 6, 50, 51, 52]
    assert (rows[3].num_prompt_tokens, rows[3].num_output_tokens) == (6, 3)


def test_f25_a_preempted_request_goes_to_the_front(make_request: Make, make_stepper: Make) -> None:
    requests = [make_request(name, 8, max_tokens=20) for name in ("a", "b", "c")]
    stepper = make_stepper(*requests, num_pages=7, watermark=0.0, is_prefix_caching=False, max_num_seqs=2)
    while not (victims := stepper.step()[0].preempted_request_ids):
        pass
    assert victims == ("b",)
    assert [request.request_id for request in stepper.scheduler.view(0.0).waiting] == ["b", "c"]


@given(TRACES, st.integers(20, 60))
def test_f25_output_lengths_are_as_asked_and_no_page_is_lost(trace: list[tuple[int, int, int]], num_pages: int) -> None:
    num_outputs = dict.fromkeys(range(len(trace)), 0)

    def check(schedule: Schedule, decoding: set[str]) -> None:
        for row in schedule.rows:
            num_outputs[int(row.request_id)] += row.does_sample

    run_trace(trace, check, num_pages=num_pages, token_budget=16, max_num_seqs=8)
    assert num_outputs == {index: max_tokens for index, (_, max_tokens, _) in enumerate(trace)}


def test_f26_admission_goes_by_arrival(make_request: Make, make_stepper: Make) -> None:
    requests = [make_request(str(index), 5 + 7 * (index % 3), max_tokens=3) for index in range(20)]
    first_steps: dict[str, int] = {}
    for schedule in make_stepper(*requests, max_num_seqs=3).drain():
        for row in schedule.rows:
            first_steps.setdefault(row.request_id, schedule.step)
    steps = [first_steps[str(index)] for index in range(20)]
    assert steps == sorted(steps)
    assert len(set(steps)) > 6


@pytest.mark.parametrize(("is_blocking", "expected"), [(True, {"a"}), (False, {"a", "small"})])
def test_f26_a_head_that_does_not_fit_blocks_unless_switched_off(
    is_blocking: bool, expected: set[str], make_request: Make, make_stepper: Make
) -> None:
    requests = [make_request("a", 12), make_request("big", 40), make_request("small", 2)]
    options = {"num_pages": 12, "is_prefix_caching": False, "token_budget": 64}
    stepper = make_stepper(*requests, is_head_of_line_blocking=is_blocking, **options)
    assert set(dict(chunks(stepper.step()[0]))) == expected


@pytest.mark.parametrize(("is_blocking", "expected"), [(True, [("a", 4)]), (False, [("a", 4), ("c", 2)])])
def test_at_most_so_many_prompts_are_left_partial(
    is_blocking: bool, expected: list[tuple[str, int]], make_request: Make, make_stepper: Make
) -> None:
    requests = [make_request("a", 40), make_request("b", 40), make_request("c", 2)]
    options = {"long_prefill_token_threshold": 4, "is_prefix_caching": False, "max_num_partial_prefills": 1}
    stepper = make_stepper(*requests, is_head_of_line_blocking=is_blocking, **options)
    assert chunks(stepper.step()[0]) == expected


def test_no_more_rows_than_max_num_seqs(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(*[make_request(str(index), 1) for index in range(9)], max_num_seqs=3)
    assert len(stepper.step()[0].rows) == 3
