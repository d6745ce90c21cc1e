"""A world of random requests around a scheduler, whose device keeps real pages.

That device is a page table and a hash: a token's "keys and values" are a hash of the salt and all tokens up to it, read and written through the block
tables; what a row samples is a hash of all that it reads. So a page given to two, freed too early, shared with the wrong request or found with the wrong content
gives a wrong token, and the oracle, which has no pages, tells.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request, RequestState
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler

STEP_S = 1e-3
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

    def set_slots(self, schedule: Schedule) -> None:
        self.history |= {row.batch_slot: list(row.context_token_ids) for row in schedule.rows if row.is_first}

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


def place_of(request: Request) -> tuple[int, int, int]:
    """Whose turn it is, from what the world itself gave the request: priority, number of the arrival, sample."""
    return request.priority, int(request.request_id.partition("-")[0]), request.sample_index


class World:
    """A scheduler, its device, and the checks. claims: the policy's. max_in_flight: steps that may be in flight when another is scheduled.

    priorities: one of which each request has. num_passed, num_spared: admissions before somebody who came earlier, and younger ones that kept their pages, for
    their priority. num_chained: chunks that followed one of the same prompt through a pipeline.
    """

    def __init__(
        self, policy: str, claims: Any, max_in_flight: int, *, priorities: Sequence[int] = (0,), **options: Any
    ) -> None:
        self.claims = claims
        self.options = options = claims.sizes({**options, "max_model_len": MAX_MODEL_LEN})
        self.scheduler = Scheduler(policy, vocab_size=VOCAB_SIZE, **options)
        self.max_in_flight = max_in_flight
        self.num_stages = options["num_microbatches"]
        self.device = PagedDevice(options["page_size"], salts={})
        self.live: dict[str, Request] = {}
        self.in_flight: list[Schedule] = []
        self.num_added = 0
        self.num_scheduled: Counter[str] = Counter()
        self.priorities = priorities
        self.num_passed = self.num_spared = self.num_chained = 0
        self.last_admitted: dict[int, int] = {}
        self.has_failed = False
        self.oldest: tuple[object, int] = (None, 0)
        self.now_s = 0.0

    def add(self, prompt: list[int], max_tokens: int, num_samples: int, salt: str, min_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, n=num_samples, min_tokens=min(min_tokens, max_tokens))
        self.num_added += 1
        name = str(self.num_added)
        request = Request(
            name, prompt, sampling, arrival_s=self.now_s, seed=7 * self.num_added, max_tokens=max_tokens,
            eos_token_ids=(EOS,), cache_salt=salt, priority=Random(self.num_added).choice(self.priorities),
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
        self.now_s += STEP_S
        running = self.scheduler.view(self.now_s).running
        oldest = running[0].request_id if running else None
        decoding = {
            request.request_id for request in running if not request.is_prefilling and request.num_remaining_tokens
        }
        reading = {request.request_id for request in running if request.is_prefilling}
        grown = {request.request_id for request in running if request.num_computed_tokens > request.num_prefill_tokens}
        before = {request.request_id: request.num_preemptions for request in self.live.values()}
        schedule = self.scheduler.schedule(self.now_s)
        preempted = {name for name, number in before.items() if self.live[name].num_preemptions > number}
        rows = {} if schedule is None else {row.request_id: row for row in schedule.rows}
        self._check_decodes(decoding, preempted, set(rows))
        self._check_under_way(reading, set(rows))
        if self.options["preempt_every_steps"] is None:
            self._check_victims(preempted, rows, oldest)
        if schedule is None:
            assert self.in_flight or not self.scheduler.has_unfinished, "nothing runs and something could (I-19)"
        else:
            self._check_step(schedule)
            self._check_kinds(schedule, reading)
            self._check_passed(schedule)
            if self.claims.is_closed and grown - preempted:
                assert not any(row.is_first for row in schedule.rows), "somebody joins requests that decode (F27)"
            if self.num_stages > 1:
                # A pipeline's step reads its slots when it ends, and they are set up when it begins.
                self.device.set_slots(schedule)
            self.in_flight.append(schedule)
            if not preempted:
                self._check_head(schedule)
        return schedule

    def complete(self, poisoned: set[int] | None = None) -> None:
        schedule = self.in_flight.pop(0)
        if self.num_stages == 1:
            self.device.set_slots(schedule)
        bad = {index for index in poisoned or () if index < len(schedule.rows)}
        token_ids = self.device.run(schedule, bad)
        is_finite = [index not in bad for index in range(len(token_ids))]
        for output in self.scheduler.complete(schedule, StepResult(token_ids, is_finite), self.now_s):
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
        ended = self.scheduler.fail_step(failed)
        assert ended is not None
        for schedule in self.in_flight:
            if schedule is not failed:
                assert self.scheduler.complete(schedule, StepResult([1] * len(schedule.rows)), 0.0) == []
        self.in_flight.clear()
        assert {name: request.token_ids for name, request in self.live.items()} == tokens  # I-35
        for output in ended:  # who was in every step of many that failed
            assert (output.token_id, output.finish_reason, output.fault) == (None, "error", "internal_error")
            self._ended(output.request)
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
        self._check_queue()
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
        places: list[tuple[int, int, int]] = []
        for row in schedule.rows:
            request = self.live[row.request_id]
            if row.is_first and row.request_id not in self.num_scheduled:
                assert row.start == request.num_prefix_hit_tokens < request.num_prompt_tokens, "I-13, I-16"
                places.append(place_of(request))
            self.num_scheduled[row.request_id] += row.num_tokens
        if self.claims.is_by_arrival and self.options["is_head_of_line_blocking"]:
            for priority, arrival, _ in sorted(place for place in places if place[2] == 0):
                last = self.last_admitted.get(priority, 0)
                assert last < arrival, "a request was admitted before an older one of its priority (I-20)"
                self.last_admitted[priority] = arrival
        self._check_progress()

    def _check_passed(self, schedule: Schedule) -> None:
        """Whoever came in leaves nobody behind who has a lower number, unless that one may not come in now (I-20)."""
        admitted = [self.live[row.request_id] for row in schedule.rows if row.is_first]
        view = self.scheduler.view(self.now_s)
        waiting = list(view.waiting)
        if self.claims.is_closed:
            began_s = min((each.first_scheduled_s or 0.0 for each in view.running), default=self.now_s)
            waiting = [each for each in waiting if each.arrival_s <= began_s]
        if not admitted or not self.options["is_head_of_line_blocking"] or self.scheduler.suspects.is_hunting:
            return
        assert max(each.priority for each in admitted) <= min((each.priority for each in waiting), default=2**63)
        self.num_passed += any(place_of(each)[1] < place_of(other)[1] for each in waiting for other in admitted)

    def _check_queue(self) -> None:
        """By priority; and within one, whoever has run before whoever has not (I-20)."""
        waiting = [each for each in self.scheduler.view(self.now_s).waiting if each.sample_index == 0]
        places = [(each.priority, each.first_scheduled_s is None) for each in waiting]
        assert places == sorted(places)

    def _check_progress(self) -> None:
        """With strict order the oldest request of the lowest number gets a token again and again (I-22). Prompts before decodes, and a prompt to read again in every step: no."""
        if self.options["preempt_every_steps"] == 1 and not self.claims.is_hybrid and not self.claims.has_turns:
            return
        request = min(self.live.values(), key=place_of)
        mark = (request.request_id, len(request.token_ids))
        self.oldest = (mark, self.oldest[1] + 1 if mark == self.oldest[0] else 0)
        assert self.oldest[1] < 150 or not self.options["is_head_of_line_blocking"], f"{request} is stuck"

    def _check_decodes(self, decoding: set[str], preempted: set[str], rows: set[str]) -> None:
        """I-18; in a pipeline F22: decodes are dealt out evenly over as many steps as there are stages."""
        if self.num_stages == 1:
            kept = decoding - preempted
            reads_alone = not self.claims.is_hybrid and bool(rows) and not rows & kept
            assert kept <= rows or reads_alone, "a decode is left out of a step"
            return
        assert len(decoding & rows - preempted) <= -(-len(decoding) // self.num_stages), "a microbatch has too many"

    def _check_under_way(self, reading: set[str], rows: set[str]) -> None:
        """F22: a request is in at most one of as many steps as there are stages; but for prompts whose chunks follow one another, if the policy claims that."""
        newest = self.in_flight[1 - self.num_stages :] if self.num_stages > 1 else []
        again = rows & {row.request_id for schedule in newest for row in schedule.rows}
        assert not again or (self.claims.does_chain and again <= reading), "a request is in two microbatches"
        self.num_chained += len(again)

    def _check_kinds(self, schedule: Schedule, reading: set[str]) -> None:
        """What a step reads and decodes is as the policy claims (F27); the next view tells of it."""
        prompts = [row for row in schedule.rows if row.is_first or row.request_id in reading]
        assert self.scheduler.view(0.0).was_prefill == bool(prompts)
        assert self.claims.is_hybrid or len(prompts) in (0, len(schedule.rows)), "prompts and decodes are in one step"
        assert not self.claims.is_whole or all(row.does_sample for row in schedule.rows), "a prompt is split"

    def _check_victims(self, preempted: set[str], rows: dict[str, ScheduledRow], oldest: str | None) -> None:
        """The youngest of the highest number go, or at least not the oldest of the lowest, and nobody is let in for them (I-21)."""
        if preempted:
            assert not self.claims.is_reserving, "who has all pages there may ever be needed is preempted"
            stayed = [place_of(request) for request in self.scheduler.view(0.0).running]
            went = sorted(place_of(self.live[name]) for name in preempted)
            if self.claims.is_by_arrival:
                assert all(place < went[0] for place in stayed)
            assert all(place[0] <= went[0][0] for place in stayed)
            self.num_spared += any(place[1] > other[1] for place in stayed for other in went)
            assert oldest not in preempted or not stayed
            assert not any(row.is_first for row in rows.values())
            for priority in {place[0] for place in went}:
                mine = [place for place in went if place[0] == priority]
                waiting = [place_of(each) for each in self.scheduler.view(0.0).waiting if each.priority == priority]
                assert waiting[: len(mine)] == mine

    def _check_head(self, schedule: Schedule) -> None:
        """What could have been admitted even with nothing cached was (I-19)."""
        limits = self.scheduler.limits
        view = self.scheduler.view(self.now_s)
        # Whose turn it is where it does not go by arrival is not known here: the longest fits no sooner than it.
        heads = list(view.waiting)[: 1 if self.claims.is_by_arrival else None]
        if any(each.num_late_rows for each in heads) or limits.max_num_partial_prefills is not None or not heads:
            return
        head = max(heads, key=lambda each: each.num_tokens)
        if not view.was_prefill and (self.claims.has_turns or self.claims.is_closed):
            return
        if self.claims.is_closed and any((each.first_scheduled_s or 0.0) < head.arrival_s for each in view.running):
            return  # it came when the batch had begun
        num_taken = schedule.num_tokens if view.was_prefill or self.claims.is_hybrid else 0
        if num_taken + (head.num_tokens if self.claims.is_whole else 1) <= limits.token_budget and view.num_free_slots:
            num_pages = limits.num_pages_for(head.num_tokens) + limits.num_watermark_pages
            num_pages = limits.num_pages_for(MAX_MODEL_LEN) if self.claims.is_reserving else num_pages
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
            and self.num_stages == 1
            and request.finish_reason == "length"
            and request.num_preemptions == 0
        ):
            num_computed = request.num_prompt_tokens - request.num_prefix_hit_tokens + len(request.output_token_ids) - 1
            assert self.num_scheduled[request.request_id] == num_computed

    def _footprint(self, request: Request) -> tuple[Any, ...]:
        return (request.block_table.tolist(), request.batch_slot, request.num_computed_tokens, list(request.token_ids))


@pytest.fixture(scope="session")
def make_world(claims_of: Callable[[str], Any]) -> Callable[..., World]:
    """`make_world(policy, max_in_flight=..., ...)`; sizes grow by what the policy needs."""
    return lambda policy, **options: World(policy, claims_of(policy), **options)
