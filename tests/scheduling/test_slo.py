"""The `slo` policy on machines whose steps take 1 ms and 0.1 ms a token, so that all numbers can be counted by hand.

A step may be predicted to take 0.95 of the time there is: with 50 ms between tokens 47.5 ms, which are 465 tokens, 384 in whole tiles.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.step_tail import StepTail
from sarathi_jax.scheduling.step_times import BaseTimes, StepLoad, StepTimeModel, tile_sizes

Make = Callable[..., Any]
# Of a prompt alone in steps of 2048 tokens: (1 + 204.8) / 2048 ms.
TOKEN_S = 0.2058 / 2048


def chunks(schedule: Schedule) -> dict[str, int]:
    return {row.request_id: row.num_tokens for row in schedule.rows}


def planned(machine: Any, now_s: float) -> list[tuple[str, int]]:
    """Names and tokens in the policy's order."""
    plan = machine.policy.plan(machine.scheduler.view(now_s))
    return [(request.request_id, num_tokens) for request, num_tokens in plan.chunks]


# ---- how large a step is


@pytest.mark.parametrize(
    ("tbt_slo_ms", "sizes", "expected"),
    [
        (30, (), 256),  # 28.5 ms: 275 tokens
        (50, (), 384),  # 47.5 ms: 465
        (100, (), 896),  # 95 ms: 940
        (500, (), 2048),  # more than the largest
        (10, (), 128),  # 9.5 ms: 85. The smallest is too long, but prompts have to be read
        (10, (32, 128, 256, 512), 32),
        (50, (32, 128, 256, 512), 256),
        (70, (32, 128, 256, 512), 512),
    ],
)
def test_a_step_is_the_largest_bucket_within_the_time_of_a_token(
    tbt_slo_ms: float, sizes: tuple[int, ...], expected: int, make_policy: Make, make_machine: Make, make_request: Make
):
    machine = make_machine(make_policy(tbt_slo_ms, sizes=sizes))
    machine.add(make_request("decode", 10, max_tokens=50))
    machine.step()
    machine.add(make_request("prompt", 8000))
    assert chunks(machine.step().schedule) == {"decode": 1, "prompt": expected - 1}


def test_nothing_is_chunked_beyond_the_largest_bucket_while_nobody_decodes(
    make_policy: Make, make_machine: Make, make_request: Make
):
    machine = make_machine(make_policy(50))
    machine.add(make_request("prompt", 2100, max_tokens=3))
    assert [chunks(machine.step().schedule) for _ in range(3)] == [{"prompt": 2048}, {"prompt": 52}, {"prompt": 1}]


def test_what_a_chunk_attends_to_takes_time_too(make_policy: Make, make_machine: Make, make_request: Make):
    """0.1 us a pair. 384 tokens: 1 + 38.4 + 383 * 191.5 * 1e-4 = 46.7 ms, within 47.5; 512: 65.3 ms. After 4,080 tokens not even 256: 1 + 25.6 + 255 * 4207 * 1e-4."""

    class WithAttention:
        def seconds(self, load: StepLoad) -> float:
            return 1e-3 + 1e-4 * load.num_tokens + 1e-7 * load.chunk_pairs

        def observe(self, load: StepLoad, seconds: float) -> None: ...

    machine = make_machine(make_policy(50, times=WithAttention()))
    machine.add(make_request("decode", 10, max_tokens=200))
    machine.step()
    machine.add(make_request("prompt", 8000))
    steps = [chunks(machine.step().schedule)["prompt"] for _ in range(40)]
    assert steps[0] == 383 and steps[-1] == 127 and steps == sorted(steps, reverse=True)


def test_the_tightest_class_among_the_decodes_counts(make_policy: Make, make_machine: Make, make_request: Make):
    """Batch alone: 190 ms, 1890 tokens, 1792 in whole tiles. Beside an interactive one: as for it."""
    machine = make_machine(make_policy(50, batch_tbt_slo_s=0.2))
    machine.add(make_request("batch", 10, max_tokens=50, slo_class="batch"))
    machine.step()
    machine.add(make_request("prompt", 8000, slo_class="batch"))
    assert chunks(machine.step().schedule)["prompt"] == 1791
    machine.add(make_request("interactive", 10, max_tokens=50))
    machine.step()
    assert sum(chunks(machine.step().schedule).values()) == 384


def test_a_class_that_is_not_known_counts_as_interactive(make_policy: Make, make_machine: Make, make_request: Make):
    machine = make_machine(make_policy(50))
    machine.add(make_request("decode", 10, max_tokens=50, slo_class="gold"))
    machine.step()
    machine.add(make_request("prompt", 8000, slo_class="gold"))
    assert chunks(machine.step().schedule)["prompt"] == 383


@pytest.fixture
def early_decode(make_policy: Make, make_machine: Make, make_request: Make) -> Callable[[int], Scheduler]:
    """A batch request with so many tokens at 0 s, that were due every 80 ms from then on; and a prompt that waits."""

    def make(num_output_tokens: int) -> Scheduler:
        scheduler = make_machine(make_policy(1, batch_tbt_slo_s=0.08), token_budget=4096).scheduler
        scheduler.add(make_request("batch", 10, max_tokens=50, slo_class="batch"))
        for _ in range(num_output_tokens):
            scheduler.complete(scheduler.schedule(0.0), StepResult([1]), 0.0)
        scheduler.add(make_request("prompt", 8000, slo_class="batch"))
        return scheduler

    return make


@pytest.mark.parametrize(
    ("num_output_tokens", "now_s", "expected"),
    [
        (2, 0.04, 1024),  # the third is due at 160 ms: 120 are left, 114 to be used, 1130 tokens
        (2, 0.0, 1408),  # 160: 152, 1510 tokens
        (2, 0.3, 640),  # it is late: 80, no less; 76, 750 tokens
        (12, 0.0, 2944),  # due at 960 ms; 4 * 80 = 320 at most: 304, 3030 tokens
    ],
)
def test_a_batch_request_that_is_ahead_lets_a_step_take_longer(
    num_output_tokens: int, now_s: float, expected: int, early_decode: Callable[[int], Scheduler]
):
    schedule = early_decode(num_output_tokens).schedule(now_s)
    assert schedule is not None and schedule.num_tokens == expected


def test_slack_is_not_spent_twice_while_a_step_is_in_flight(early_decode: Callable[[int], Scheduler]):
    """The step in flight takes 1 + 102.4 ms from 40 ms on, and the token after it is due at 240: 96.6 ms are left, 91.8 to be used, 908 tokens."""
    scheduler = early_decode(2)
    assert [getattr(scheduler.schedule(0.04), "num_tokens", 0) for _ in range(2)] == [1024, 896]


def test_of_a_hundred_steps_the_slowest_are_allowed_for(make_policy: Make, make_machine: Make, make_request: Make):
    """4 of 100 take 1.4 times as long as said: 50 / 1.4 = 35.7 ms, 347 tokens."""
    machine = make_machine(policy := make_policy(50))
    for index in range(100):
        policy.tail.observe(StepLoad(90, 2, 1, 10, 0.0), 0.014 if index % 25 == 0 else 0.01)
    machine.add(make_request("decode", 10, max_tokens=50))
    machine.step()
    machine.add(make_request("prompt", 8000))
    assert chunks(machine.step().schedule)["prompt"] == 255


def test_the_tail_is_that_of_the_latest_steps_and_bounded(line_times: Make):
    """A step of 90 tokens takes 10 ms."""
    tail, load = StepTail(line_times()), StepLoad(90, 1, 0, 0, 0.0)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        tail.observe(load, seconds)
    for _ in range(63):
        tail.observe(load, 0.09)
    assert tail.ratio == 1.0  # too few to tell
    tail.observe(load, 0.09)
    assert tail.ratio == 2.0
    for _ in range(256):
        tail.observe(load, 0.005)
    assert tail.ratio == 1.0


def test_a_machine_that_became_slower_has_no_longer_tail_once_that_is_known(line_times: Make):
    tail, load = StepTail(times := line_times()), StepLoad(90, 1, 0, 0, 0.0)
    for _ in range(63):
        tail.observe(load, 0.015)
    times.base_s, times.token_s = 1.5e-3, 1.5e-4
    tail.observe(load, 0.015)
    assert tail.ratio == pytest.approx(1.0)


# ---- always


def random_requests(seed: int, make_request: Make, count: int, mean_gap_s: float) -> list[Request]:
    random, now_s, requests = Random(seed), 0.0, []
    for index in range(count):
        now_s += random.expovariate(1 / mean_gap_s)
        length = random.choice([100, 2000])
        requests.append(make_request(str(index), length, max_tokens=random.randint(2, 60), arrival_s=now_s))
    return requests


@pytest.mark.parametrize("seed", range(4))
def test_f1_f2_f10_no_decode_is_left_out_and_every_token_is_in_time(
    seed: int, make_policy: Make, make_machine: Make, make_request: Make
):
    """Also work-conserving: as long as there are prompts to read, every step reads some."""
    machine = make_machine(make_policy(50), random_requests(seed, make_request, 120, 0.1))
    prompts: dict[str, int] = {request.request_id: request.num_prompt_tokens for request in machine.late}
    while machine.late or machine.scheduler.has_unfinished:
        ran = machine.step()
        assert ran.decodes <= chunks(ran.schedule).keys() and ran.schedule.num_tokens <= 2048
        assert not ran.decodes or ran.end_s - ran.start_s <= 0.0475 + 1e-9
        live = {
            each.request_id for each in (*machine.scheduler.view(0.0).running, *machine.scheduler.view(0.0).waiting)
        }
        unread = {name for name in live if prompts[name] > 0}
        for row in ran.schedule.rows:
            prompts[row.request_id] -= row.num_tokens
        assert not unread or any(row.num_tokens > 1 for row in ran.schedule.rows)


@pytest.mark.parametrize("seed", range(4))
def test_f30_nobody_is_starved(seed: int, make_policy: Make, make_machine: Make, make_request: Make):
    """Overload: a prompt is read while another one waits only if it came less than ten times the longest prompt's own time after it."""
    requests = random_requests(seed, make_request, 150, 0.08)
    arrival_s = {request.request_id: request.arrival_s for request in requests}
    machine, num_passed = make_machine(make_policy(50), requests), 0
    unread = {request.request_id: request.num_prompt_tokens for request in requests}
    while machine.late or machine.scheduler.has_unfinished:
        ran = machine.step()
        rows = {name: num_tokens for name, num_tokens in chunks(ran.schedule).items() if name not in ran.decodes}
        left_out = [
            at_s for name, at_s in arrival_s.items() if unread[name] and at_s <= ran.start_s and name not in rows
        ]
        for name, num_tokens in rows.items():
            unread[name] -= num_tokens
            assert all(arrival_s[name] < at_s + 10 * 2000 * TOKEN_S for at_s in left_out)
            num_passed += sum(at_s < arrival_s[name] for at_s in left_out)
    assert num_passed > 100  # the order is not that of arrival


@given(
    trace=st.lists(
        st.tuples(
            st.integers(1, 40), st.integers(1, 15), st.sampled_from(["interactive", "batch"]), st.sampled_from("ab")
        ),
        min_size=1,
        max_size=12,
    ),
    num_pages=st.integers(14, 30),
    is_fair=st.booleans(),
    num_partial=st.sampled_from([None, 1]),
)
def test_f25_everything_ends_in_a_tiny_pool(
    trace: list[tuple[int, int, str, str]],
    num_pages: int,
    is_fair: bool,
    num_partial: int | None,
    make_policy: Make,
    make_machine: Make,
    make_request: Make,
):
    limits = {"num_pages": num_pages, "page_size": 4, "token_budget": 16, "max_num_seqs": 5, "max_model_len": 56}
    policy = make_policy(50, is_fair=is_fair, ttft_slo_s=0.01)
    machine = make_machine(policy, max_num_partial_prefills=num_partial, **limits)
    requests = [
        make_request(str(index), length, max_tokens=max_tokens, slo_class=slo_class, client=client)
        for index, (length, max_tokens, slo_class, client) in enumerate(trace)
    ]
    machine.add(*requests)
    for ran in machine.drain():
        assert ran.decodes <= {*chunks(ran.schedule), *ran.schedule.preempted_request_ids}
    assert [len(request.output_token_ids) for request in requests] == [max_tokens for _, max_tokens, *_ in trace]
    assert machine.scheduler.num_free_pages == num_pages


def test_times_that_are_no_numbers_stall_nobody(make_policy: Make, make_machine: Make, make_request: Make):
    class Broken:
        def seconds(self, load: StepLoad) -> float:
            return math.nan

        def observe(self, load: StepLoad, seconds: float) -> None: ...

    for num_microbatches in (1, 2):
        machine = make_machine(make_policy(50, times=Broken()), num_microbatches=num_microbatches)
        machine.add(*(make_request(str(index), 300 * index + 1) for index in range(6)))
        assert all(ran.decodes <= chunks(ran.schedule).keys() for ran in machine.drain()) or num_microbatches > 1


# ---- whose pages are taken


@pytest.mark.parametrize(
    ("requests", "victim"),
    [
        # A prompt that is being read, before a younger output.
        ({"oldest": 15, "prompt": 640, "youngest": 15}, "prompt"),
        # Of two prompts the one that has read less of what it holds: 8 of 40 pages, before 8 of 12.
        ({"oldest": 15, "long": 640, "short": 192}, "long"),
        # An output that is ahead before one whose reader waits.
        ({"oldest": 15, "batch": 5, "youngest": 5}, "batch"),
        # Among equals the youngest.
        ({"oldest": 15, "middle": 5, "youngest": 5}, "youngest"),
        # The oldest never, though nobody waits for it yet.
        ({"oldest": 640, "middle": 15, "youngest": 5}, "youngest"),
    ],
)
def test_f25_the_cheapest_lose_their_pages(
    requests: dict[str, int], victim: str, make_policy: Make, make_machine: Make, make_request: Make
):
    """In the third step the 17th token of the one that began with 15 asks for a page, and all are taken."""
    num_pages = sum(-(-num_tokens // 16) for num_tokens in requests.values())
    limits = {"num_pages": num_pages, "watermark": 0.0, "long_prefill_token_threshold": 64, "max_model_len": 656}
    machine = make_machine(make_policy(50), **limits)
    for name, length in requests.items():
        machine.add(make_request(name, length, max_tokens=9, slo_class="batch" if name == "batch" else "interactive"))
    preempted = [machine.step().schedule.preempted_request_ids for _ in range(3)]
    assert preempted == [(), (), (victim,)]


# ---- learning


def test_a_machine_that_gets_slower_is_kept_up_with(
    make_policy: Make, make_machine: Make, make_request: Make, line_times: Make
):
    """All steps take 1.5 times as long from one on. The first ones are over 50 ms; each teaches 15 % of what is missing, at most 0.0375: after 20 steps all are within."""
    ends = [(1, 1.1e-3), (2048, 0.2058)]
    model = StepTimeModel(
        BaseTimes(tile_sizes(2048), ends),
        BaseTimes(tile_sizes(2048), ends),
        per_row_s=0.0,
        per_context_s=0.0,
        per_pair_s=0.0,
    )
    machine = make_machine(make_policy(50, times=model))
    machine.add(*(make_request(f"decode-{index}", 10, max_tokens=400) for index in range(8)))
    machine.step()
    machine.add(*(make_request(str(index), 8000, max_tokens=1) for index in range(6)))
    before = [machine.step() for _ in range(20)]
    machine.times = line_times(1.5e-3, 1.5e-4)
    after = [machine.step() for _ in range(60)]
    seconds = [ran.end_s - ran.start_s for ran in before + after]
    assert max(seconds[:20]) < 0.0475 and seconds[20] > 0.05
    assert max(seconds[40:]) < 0.05 and after[-1].schedule.num_tokens == 256  # 1.5 * 39.4 = 59 ms, 1.5 * 26.6 = 40 ms


def test_lost_steps_teach_nothing(make_policy: Make, make_machine: Make, make_request: Make, line_times: Make):
    """Two steps are in flight when the first one fails, and a third is run after them."""

    class Noting(type(line_times())):
        seen: ClassVar[list[tuple[int, float]]] = []

        def observe(self, load: StepLoad, seconds: float) -> None:
            self.seen.append((load.num_tokens, seconds))

    scheduler = make_machine(make_policy(50, times=Noting())).scheduler
    scheduler.add(make_request("a", 100))
    first, second = scheduler.schedule(0.0), scheduler.schedule(0.5)
    scheduler.fail_step(first)
    scheduler.complete(second, StepResult([1]), 1.0)
    third = scheduler.schedule(2.0)
    assert len(scheduler.complete(third, StepResult([1]), 2.25)) == 1 and Noting.seen == [(100, 0.25)]


def test_a_step_begins_when_the_one_before_it_is_done(
    make_policy: Make, make_machine: Make, make_request: Make, line_times: Make
):
    """Planned at 0 and 0.1 s and done at 1 and 1.25: what is learned are 1 s and 0.25 s."""
    seen: list[float] = []

    class Noting(type(line_times())):
        def observe(self, load: StepLoad, seconds: float) -> None:
            seen.append(seconds)

    scheduler = make_machine(make_policy(50, times=Noting())).scheduler
    scheduler.add(make_request("a", 100))
    steps = [scheduler.schedule(0.0), scheduler.schedule(0.1)]
    for step, end_s in zip(steps, (1.0, 1.25), strict=True):
        scheduler.complete(step, StepResult([1]), end_s)
    assert seen == [1.0, 0.25]


def test_gaps_are_within_the_slo_of_the_machine_that_is_simulated(
    make_policy: Make, make_machine: Make, make_request: Make
):
    """All gaps between tokens of an interactive request, not only steps: no step comes between that it is not in."""
    machine = make_machine(make_policy(100), random_requests(9, make_request, 60, 0.15))
    times_s: dict[str, list[float]] = {}
    for ran in machine.drain():
        for row in ran.schedule.rows:
            if row.does_sample:
                times_s.setdefault(row.request_id, []).append(ran.end_s)
    gaps_s = [after - before for times in times_s.values() for before, after in pairwise(times)]
    assert max(gaps_s) <= 0.095 + 1e-9 and len(gaps_s) > 1000
