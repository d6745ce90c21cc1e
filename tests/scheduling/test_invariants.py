"""A random life of the scheduler against a device that keeps real pages: whatever happens, every request gets the tokens that it would get alone.

I numbers are the invariants in the project's reference on reliability. The device is a page table and a hash: a token's "keys and values" are a hash
of the salt and all tokens up to it, read and written through the block tables; what a row samples is a hash of all that it reads. So a page given
to two, freed too early, shared with the wrong request or found with the wrong content gives a wrong token, and the oracle, which has no pages, tells.
"""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request, RequestState
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler

VOCAB_SIZE, EOS, POISON = 50, 2, -1
MAX_MODEL_LEN = 48


def sampled(seed: int, entries: list[int]) -> int:
    return hash((seed, *entries)) % VOCAB_SIZE


def expected_token(seed: int, salt: str, token_ids: list[int]) -> int:
    """The oracle: what follows these tokens, computed without pages."""
    entries = [hash((seed_of(salt), *token_ids[: end + 1])) for end in range(len(token_ids))]
    return sampled(seed, entries)


def seed_of(salt: str) -> int:
    return int.from_bytes(salt.encode())


class PagedDevice:
    """Runs schedules in order. salts: request id to what its pages depend on besides tokens."""

    def __init__(self, page_size: int, salts: dict[str, str]) -> None:
        self.page_size = page_size
        self.salts = salts
        self.entries: dict[tuple[int, int], int] = {}
        self.history: dict[int, list[int]] = {}

    def run(self, schedule: Schedule, poisoned: set[int]) -> list[int]:
        for index, row in enumerate(schedule.rows):
            self._write(row, index in poisoned)
        return [self._sample(row) for row in schedule.rows]

    def lose_all(self) -> None:
        self.entries.clear()
        self.history.clear()

    def _slot(self, row: ScheduledRow, position: int) -> tuple[int, int]:
        return int(row.block_table[position // self.page_size]), position % self.page_size

    def _write(self, row: ScheduledRow, is_poisoned: bool) -> None:
        if row.is_first:
            self.history[row.batch_slot] = list(row.context_token_ids)
        history = self.history[row.batch_slot]
        if row.token_ids is not None:
            assert len(history) in (row.start, row.start + 1), "a row does not follow the one before (I-25)"
            history[row.start :] = row.token_ids
        assert len(history) == row.start + row.num_tokens
        for position in range(row.start, len(history)):
            entry = hash((seed_of(self.salts[row.request_id]), *history[: position + 1]))
            self.entries[self._slot(row, position)] = POISON if is_poisoned else entry

    def _sample(self, row: ScheduledRow) -> int:
        if not row.does_sample:
            return 0
        end = row.start + row.num_tokens
        token_id = sampled(row.seed, [self.entries.get(self._slot(row, position), POISON) for position in range(end)])
        self.history[row.batch_slot].append(token_id)
        return token_id


class World:
    """A scheduler, its device, and the checks. max_in_flight: steps that may be in flight when another is scheduled."""

    def __init__(self, max_in_flight: int, **options: Any) -> None:
        self.options = options
        self.scheduler = Scheduler("sarathi", max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE, **options)
        self.max_in_flight = max_in_flight
        self.device = PagedDevice(options["page_size"], salts={})
        self.live: dict[str, Request] = {}
        self.in_flight: list[Schedule] = []
        self.num_added = 0
        self.num_scheduled: Counter[str] = Counter()
        self.last_admitted = (0, 0)
        self.has_failed = False
        self.oldest: tuple[object, int] = (None, 0)

    def add(self, prompt: list[int], max_tokens: int, num_samples: int, salt: str, min_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, n=num_samples, min_tokens=min(min_tokens, max_tokens))
        self.num_added += 1
        name = str(self.num_added)
        request = Request(
            name, prompt, sampling, arrival_s=0.0, seed=7 * self.num_added, max_tokens=max_tokens,
            eos_token_ids=(EOS,), cache_salt=salt,
        )  # fmt: skip
        page_size, num_pages = self.options["page_size"], self.options["num_pages"]
        if -(-(len(prompt) + max_tokens - 1) // page_size) > num_pages:
            with pytest.raises(ValueError, match="tokens in the KV cache need"):  # I-23
                self.scheduler.add(request)
            return
        for sample in self.scheduler.add(request):
            self.live[sample.request_id] = sample
            self.device.salts[sample.request_id] = salt if self.options["is_prefix_caching"] else name

    def schedule(self) -> Schedule | None:
        running = self.scheduler.view(0.0).running
        decoding = {
            request.request_id for request in running if not request.is_prefilling and request.num_remaining_tokens
        }
        before = {request.request_id: request.num_preemptions for request in self.live.values()}
        schedule = self.scheduler.schedule(0.0)
        preempted = {name for name, number in before.items() if self.live[name].num_preemptions > number}
        rows = {} if schedule is None else {row.request_id: row for row in schedule.rows}
        assert decoding - preempted <= set(rows), "a decode is left out of a step (I-18)"
        if self.options["preempt_every_steps"] is None:
            self._check_victims(preempted, rows)
        if schedule is None:
            assert self.in_flight or not self.scheduler.has_unfinished, "nothing runs and something could (I-19)"
        else:
            self._check_step(schedule)
            self.in_flight.append(schedule)
            if not preempted:
                self._check_head(schedule)
        return schedule

    def complete(self, poisoned: set[int] | None = None) -> None:
        schedule = self.in_flight.pop(0)
        bad = {index for index in poisoned or () if index < len(schedule.rows)}
        token_ids = self.device.run(schedule, bad)
        is_finite = [index not in bad for index in range(len(token_ids))]
        for output in self.scheduler.complete(schedule, StepResult(token_ids, is_finite), 0.0):
            request = self.live[output.request.request_id]  # I-30: nothing comes after the end
            if output.token_id is not None:
                salt = self.device.salts[request.request_id]
                assert output.token_id == expected_token(request.seed, salt, request.token_ids[:-1]), "I-38, I-42"
                self._check_end(request, output.finish_reason)
            if output.finish_reason is not None:
                assert (output.token_id is None) == (output.finish_reason == "error")
                self._ended(request)

    def end(self, index: int, is_abort: bool) -> None:
        request = list(self.live.values())[index % len(self.live)]
        others = {other.request_id: self._footprint(other) for other in self.live.values()}
        if is_abort:
            ended = self.scheduler.abort(request.request_id)
            assert request in ended
        else:
            ended = [request] if self.scheduler.finish(request.request_id, "stop") else []
        for each in ended:
            self._ended(each)
        for other in self.live.values():
            assert self._footprint(other) == others[other.request_id], "an abort changed another request (I-32)"

    def fail(self, index: int) -> None:
        failed = self.in_flight[index % len(self.in_flight)]
        self.device.lose_all()
        self.has_failed = True
        tokens = {name: list(request.token_ids) for name, request in self.live.items()}
        self.scheduler.fail_step(failed)
        for schedule in self.in_flight:
            if schedule is not failed:
                assert self.scheduler.complete(schedule, StepResult([1] * len(schedule.rows)), 0.0) == []
        self.in_flight.clear()
        assert {name: request.token_ids for name, request in self.live.items()} == tokens  # I-35
        assert self.scheduler.num_running == len(self.scheduler.kv_pages.cache) == 0

    def drain(self) -> None:
        """No more arrivals: everything ends, and all pages are back (I-08, I-37)."""
        for _ in range(4_000):
            if not self.live and not self.in_flight:
                break
            self.step()
        assert not self.live and not self.scheduler.has_unfinished, "the scheduler makes no progress (I-22)"
        assert self.scheduler.num_free_pages == self.options["num_pages"]
        assert self.options["is_prefix_caching"] or self.scheduler.kv_pages.pool.num_idle == 0

    def step(self) -> None:
        """Schedule if that is allowed, else complete."""
        if len(self.in_flight) > self.max_in_flight or (self.schedule() is None and self.in_flight):
            self.complete()

    def check(self) -> None:
        """What holds between any two actions: I-01 to I-04, I-10, I-28."""
        self.scheduler.check_integrity()
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.live)
        assert all(self.scheduler.get(name) is request for name, request in self.live.items())
        self._check_cache()

    def _check_cache(self) -> None:
        """What can be found has been computed, by a step that completed, from the tokens that it is found for (I-11, I-14)."""
        cache = self.scheduler.kv_pages.cache
        salts = {seed_of(self.device.salts[name]) for name in self.live} | {seed_of(""), seed_of("x")}
        for page_id in cache.pages():
            tokens = cache.tokens_of_page(page_id)
            entry = self.device.entries.get((page_id, cache.page_size - 1), POISON)
            assert entry in {hash((salt, *tokens)) for salt in salts}, (
                f"page {page_id} can be found and holds something else"
            )

    def _check_step(self, schedule: Schedule) -> None:
        limits, pool = self.scheduler.limits, self.scheduler.kv_pages.pool
        assert 0 < schedule.num_tokens <= limits.token_budget, "I-17"
        assert len({row.batch_slot for row in schedule.rows}) == len(schedule.rows) <= limits.max_num_seqs
        lengths = [row.num_tokens for row in schedule.rows]
        assert min(lengths) >= 1 and lengths[: schedule.num_decode_rows] == [1] * schedule.num_decode_rows
        assert 1 not in lengths[schedule.num_decode_rows :] and sum(lengths) == schedule.num_tokens
        for row in schedule.rows:
            for block in range(row.start // limits.page_size, (row.start + row.num_tokens - 1) // limits.page_size + 1):
                page_id = int(row.block_table[block])
                assert pool.ref_count(page_id) == 1 and not pool.is_cached(page_id), (
                    "a shared page is written (I-04, I-05)"
                )
        self._count_rows(schedule)

    def _count_rows(self, schedule: Schedule) -> None:
        orders = []
        for row in schedule.rows:
            request = self.live[row.request_id]
            if row.is_first and row.request_id not in self.num_scheduled:
                assert row.start == request.num_prefix_hit_tokens < request.num_prompt_tokens, "I-13, I-16"
                orders.append(request.order)
            self.num_scheduled[row.request_id] += row.num_tokens
        first_samples = sorted(order for order in orders if order[1] == 0)
        if self.options["is_head_of_line_blocking"] and first_samples:
            assert self.last_admitted < first_samples[0], "a request was admitted before an older one (I-20)"
            self.last_admitted = first_samples[-1]
        self._check_progress()

    def _check_progress(self) -> None:
        """With strict order the oldest request gets a token again and again (I-22)."""
        request = min(self.live.values(), key=lambda each: each.order)
        mark = (request.request_id, len(request.token_ids))
        self.oldest = (mark, self.oldest[1] + 1 if mark == self.oldest[0] else 0)
        assert self.oldest[1] < 150 or not self.options["is_head_of_line_blocking"], f"{request} is stuck"

    def _check_victims(self, preempted: set[str], rows: dict[str, ScheduledRow]) -> None:
        """The youngest go, and nobody is let in for them (I-21)."""
        if preempted:
            stayed = [request.order for request in self.scheduler.view(0.0).running]
            assert max(stayed, default=(0, 0)) < min(self.live[name].order for name in preempted)
            assert not any(row.is_first for row in rows.values())
            front = [request.request_id for request in self.scheduler.view(0.0).waiting][: len(preempted)]
            assert front == sorted(preempted, key=lambda name: self.live[name].order)

    def _check_head(self, schedule: Schedule) -> None:
        """What could have been admitted even with nothing cached was (I-19)."""
        limits = self.scheduler.limits
        head = next(iter(self.scheduler.view(0.0).waiting), None)
        if head is None or head.num_in_flight_rows or limits.max_num_partial_prefills is not None:
            return
        if schedule.num_tokens < limits.token_budget and self.scheduler.num_running < limits.max_num_seqs:
            num_pages = limits.num_pages_for(head.num_tokens) + limits.num_watermark_pages
            assert num_pages > self.scheduler.num_free_pages, f"{head} fits and is not admitted"

    def _check_end(self, request: Request, reason: str | None) -> None:
        """I-43."""
        num_outputs = len(request.output_token_ids)
        is_stop = request.token_ids[-1] == EOS and num_outputs > request.sampling.min_tokens
        assert reason == ("stop" if is_stop else "length" if num_outputs == request.max_tokens else None)

    def _ended(self, request: Request) -> None:
        """I-30, I-31, I-40."""
        del self.live[request.request_id]
        assert request.state is RequestState.FINISHED and len(request.block_table) == 0 and request.batch_slot is None
        if (
            not self.has_failed
            and self.max_in_flight == 0
            and request.finish_reason == "length"
            and request.num_preemptions == 0
        ):
            num_computed = request.num_prompt_tokens - request.num_prefix_hit_tokens + len(request.output_token_ids) - 1
            assert self.num_scheduled[request.request_id] == num_computed

    def _footprint(self, request: Request) -> tuple[Any, ...]:
        return (request.block_table.tolist(), request.batch_slot, request.num_computed_tokens, list(request.token_ids))


def random_world(random: Random) -> World:
    """A small one: most faults need pressure."""
    max_num_seqs = random.randint(1, 6)
    return World(
        max_in_flight=random.choice([0, 0, 1, 1, 2]),
        page_size=random.choice([1, 2, 4]),
        num_pages=random.randint(8, 40),
        token_budget=max_num_seqs + random.randint(0, 12),
        max_num_seqs=max_num_seqs,
        is_prefix_caching=random.random() < 0.7,
        watermark=random.choice([0.0, 0.01, 0.2]),
        max_num_partial_prefills=random.choice([None, None, 1, 2]),
        long_prefill_token_threshold=random.choice([None, None, 3]),
        preempt_every_steps=random.choice([None, None, 1, 3]),
        is_head_of_line_blocking=random.random() < 0.7,
    )


def random_prompt(random: Random) -> list[int]:
    """One of three beginnings, of any length, and sometimes an end of its own."""
    family = random.randrange(3)
    prompt = [(family + position) % 7 + 3 for position in range(random.randint(1, 24))]
    return prompt + [random.randrange(VOCAB_SIZE) for _ in range(random.choice([0, 0, 1, 5]))]


def act(world: World, random: Random) -> None:
    """One random action, and all checks after it."""
    draw = random.random()
    if draw < 0.18 and len(world.live) < 14:
        num_samples = random.choice([1, 1, 1, 2, 3])
        salt, min_tokens = random.choice(["", "", "x"]), random.randint(0, 4)
        world.add(random_prompt(random), random.randint(1, 14), num_samples, salt, min_tokens)
    elif draw < 0.21 and world.live:
        world.end(random.randrange(100), is_abort=random.random() < 0.6)
    elif draw < 0.215 and world.in_flight:
        world.fail(random.randrange(100))
    elif draw < 0.25 and world.in_flight:
        world.complete(poisoned={random.randrange(4)})
    elif draw < 0.6 and world.in_flight:
        world.complete()
    else:
        world.step()
    world.check()


def walk(first_seed: int, num_actions: int) -> Counter[str]:
    """Worlds of 400 actions each. Returns: what happened, to show that the walk went through what it is for."""
    seen: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + num_actions // 400):
        random = Random(seed)
        world = random_world(random)
        for _ in range(400):
            act(world, random)
        world.drain()
        seen += Counter(samples=len(world.num_scheduled), tokens=world.num_scheduled.total(), failures=world.has_failed)
    return seen


def test_20_000_random_actions_keep_every_invariant() -> None:
    seen = walk(first_seed=0, num_actions=20_000)
    assert seen["samples"] > 2_000 and seen["tokens"] > 30_000 and seen["failures"] > 5


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(6))
def test_240_000_random_actions_keep_every_invariant(part: int) -> None:
    seen = walk(first_seed=1_000 * (part + 1), num_actions=40_000)
    assert seen["samples"] > 4_000 and seen["tokens"] > 60_000 and seen["failures"] > 10


class SchedulerMachine(RuleBasedStateMachine):
    """The same world, driven by Hypothesis, which shortens what it finds."""

    @initialize(random=st.randoms(use_true_random=False))
    def begin(self, random: Random) -> None:
        self.world = random_world(random)

    @rule(length=st.integers(1, 20), family=st.integers(0, 2), max_tokens=st.integers(1, 10), samples=st.integers(1, 3))
    def add(self, length: int, family: int, max_tokens: int, samples: int) -> None:
        if len(self.world.live) < 14:
            self.world.add([family + 3] * length, max_tokens, samples, salt="", min_tokens=0)

    @rule()
    def step(self) -> None:
        self.world.step()

    @precondition(lambda self: self.world.in_flight)
    @rule()
    def complete(self) -> None:
        self.world.complete()

    @precondition(lambda self: self.world.live)
    @rule(index=st.integers(0, 13), is_abort=st.booleans())
    def end(self, index: int, is_abort: bool) -> None:
        self.world.end(index, is_abort)

    @precondition(lambda self: self.world.in_flight)
    @rule(index=st.integers(0, 2))
    def fail(self, index: int) -> None:
        self.world.fail(index)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase
