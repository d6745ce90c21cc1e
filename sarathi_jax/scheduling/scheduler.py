"""Owns the queues and the KV pages, and turns a policy's plans into schedules and their results into tokens.

Reads no clock and no random numbers, knows no text and no device. In use:

    scheduler.add(request)
    schedule = scheduler.schedule(now_s)          # None: nothing can run now
    ... run it ...                                # another schedule may be asked for before this one's result is there
    for output in scheduler.complete(schedule, result, now_s): ...

A device runs steps in the order of their schedules. So the pages and the slot of a request that goes away while its row is in flight are free at once:
whoever gets them writes after that row. Only the prefix cache has to wait: it learns of a page when the step that filled it has completed.
"""

from collections.abc import Sequence, Set

from sarathi_jax.errors import RequestError
from sarathi_jax.outputs import FinishReason
from sarathi_jax.scheduling.admission import check_request
from sarathi_jax.scheduling.advance import advance
from sarathi_jax.scheduling.decode_group import DecodeGroup
from sarathi_jax.scheduling.forced_preemption import ForcedPreemption
from sarathi_jax.scheduling.integrity import check_scheduler
from sarathi_jax.scheduling.kv_pages import KVPages
from sarathi_jax.scheduling.lessons import Lessons
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies import make_policy, policy_name
from sarathi_jax.scheduling.policy import Plan, Policy, View
from sarathi_jax.scheduling.queues import RequestQueues
from sarathi_jax.scheduling.request import Request, RequestState
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult
from sarathi_jax.scheduling.step_rows import StepRows
from sarathi_jax.scheduling.steps_in_flight import StepsInFlight
from sarathi_jax.scheduling.suspects import Suspects
from sarathi_jax.scheduling.token_output import StepOutputs, TokenOutput, ended_by, new_prompt_logprobs, stop_token
from sarathi_jax.scheduling.wrong_rows import wrong_rows


class Scheduler:
    """First to last of every request: waiting, running, preempted, ended.

    policy: a policy, or the name of one. Other arguments are `SchedulerLimits`' fields and
    provenance: tag of what computes keys and values; pages are shared only under the same tag.
    """

    def __init__(
        self,
        policy: Policy | str,
        *,
        num_pages: int,
        page_size: int = 16,
        token_budget: int = 512,
        max_num_seqs: int = 128,
        max_model_len: int,
        vocab_size: int,
        is_prefix_caching: bool = True,
        watermark: float = 0.01,
        provenance: str = "",
        max_num_partial_prefills: int | None = None,
        long_prefill_token_threshold: int | None = None,
        preempt_every_steps: int | None = None,
        is_head_of_line_blocking: bool = True,
        num_microbatches: int = 1,
    ) -> None:
        self.limits = SchedulerLimits(
            num_pages=num_pages,
            page_size=page_size,
            token_budget=token_budget,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            watermark=watermark,
            max_num_partial_prefills=max_num_partial_prefills,
            long_prefill_token_threshold=long_prefill_token_threshold,
            preempt_every_steps=preempt_every_steps,
            is_head_of_line_blocking=is_head_of_line_blocking,
            num_microbatches=num_microbatches,
        )
        self.kv_pages = KVPages(num_pages, page_size, provenance, is_prefix_caching)
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.policy.check(self.limits)
        self._queues = RequestQueues(max_num_seqs, do_slots_rest=num_microbatches > 1)
        self._groups: dict[str, tuple[Request, ...]] = {}
        self._constrained: set[Request] = set()
        self._lessons = Lessons(self.policy, self.kv_pages, has_times=num_microbatches == 1)
        self._in_flight = StepsInFlight()
        self.suspects = Suspects()
        self._newly_preempted: list[str] = []
        self._num_steps = 0
        self._forced = ForcedPreemption(preempt_every_steps)
        self._was_prefill = False
        self._decodes = DecodeGroup(())  # of the newest step

    # ---- queries

    @property
    def has_unfinished(self) -> bool:
        return len(self._queues) > 0

    @property
    def num_running(self) -> int:
        return len(self._queues.running)

    @property
    def num_waiting(self) -> int:
        """Requests that are admitted to no step: new ones, preempted ones, and samples that wait for their leader."""
        return len(self._queues) - len(self._queues.running)

    @property
    def num_in_flight(self) -> int:
        """Steps whose result has not arrived."""
        return len(self._in_flight)

    @property
    def is_constrained(self) -> bool:
        """Whether a request that runs, or has a row in flight, has a constraint: which token may come next is known only when all before it are."""
        return any(each.state is RequestState.RUNNING or each.num_late_rows for each in self._constrained)

    @property
    def num_free_pages(self) -> int:
        """Pages that a request could get now; cached pages that nobody holds count."""
        return self.kv_pages.pool.num_available

    @property
    def kv_usage(self) -> float:
        """Share of the pages that requests hold, from 0 to 1."""
        return 1.0 - self.num_free_pages / self.limits.num_pages

    @property
    def policy_name(self) -> str:
        return policy_name(self.policy)

    def is_in_flight(self, request: Request) -> bool:
        """Whether a step whose result has not arrived holds a row of it."""
        return self._in_flight.holds(request)

    def get(self, request_id: str) -> Request | None:
        """The live request of this id, if there is one."""
        return self._queues.get(request_id)

    def view(self, now_s: float) -> View:
        """What the policy is shown."""
        is_partial = self.suspects.is_hunting
        return View(
            now_s,
            self.limits,
            self._queues.running,
            list(filter(self.suspects.may_run, self._queues.waiting)) if is_partial else self._queues.waiting,
            self.kv_pages,
            under_way=self._under_way(),
            num_free_slots=self._queues.num_free_slots,
            was_prefill=self._was_prefill,
            is_partial=is_partial,
        )

    # ---- requests come and go

    def add(self, request: Request, *, are_ids_known: bool = False) -> list[Request]:
        """Queue a request, and with it its other samples if it asks for several.

        are_ids_known: whether its tokens are known to be ids of the vocabulary, as those are that a program draws itself; else each is looked at.
        Returns: all samples, this one first; sample i has the id "<id>-<i>" and the seed + i.
        Raises: RequestError if it can never be served or the id is in use; nothing has changed then.
        """
        check_request(request, self.limits, are_ids_known=are_ids_known)
        samples = [request, *(request.sibling(index) for index in range(1, request.sampling.n))]
        for sample in samples:
            if self._queues.get(sample.request_id) or sample.request_id in self._groups:
                raise RequestError(
                    f"request_id={sample.request_id!r} is in use by a request that has not ended. Choose another id.",
                    param="request_id",
                )
        self.kv_pages.open(samples)
        self._queues.arrive(samples)
        if request.samples:
            self._groups[request.request_id] = request.samples
        if request.constraint is not None:
            self._constrained.update(samples)
        self._lessons.arrived(request)
        return samples

    def abort(self, request_id: str, now_s: float = 0.0) -> list[Request]:
        """End a request wherever it is; the first sample's id means all samples. An unknown or ended one is no error.

        Returns: the requests that ended by this call.
        """
        samples = self._groups.get(request_id)
        if samples is None:
            request = self._queues.get(request_id)
            samples = () if request is None else (request,)
        ended = [sample for sample in reversed(samples) if not sample.is_finished]
        # The leader goes last: it would send parked samples on their way.
        for sample in ended:
            self._end(sample, "abort", now_s)
        return ended[::-1]

    def finish(self, request_id: str, reason: FinishReason, now_s: float = 0.0) -> bool:
        """End one sample for a reason found outside, such as a stop string. Returns: False if it had ended or is unknown."""
        request = self._queues.get(request_id)
        if request is None:
            return False
        self._end(request, reason, now_s)
        return True

    # ---- steps

    def schedule(self, now_s: float) -> Schedule | None:
        """Plan the next step and carry the plan out on the host. Returns: what to run, or None if nothing can run now."""
        victim = self._forced.choose(self._queues.running, self._num_steps)
        if victim is not None:
            self._preempt(victim)
        if self.suspects.is_hunting:
            self.suspects.advance([*self._queues.running, *self._queues.waiting])
        view = self.view(now_s)
        plan = self.policy.plan(view)
        for request in plan.preempted:
            self._preempt(request)
        if plan.admitted:
            self._admit(plan, view, now_s)
        if not plan.decodes and not plan.prefills:
            return None
        self._was_prefill = plan.has_prefill
        num_tokens, in_flight = plan.num_tokens, self._in_flight
        assert num_tokens <= self.limits.token_budget, (
            f"the policy planned {num_tokens} tokens, over the budget of {self.limits.token_budget}"
        )
        # No plan has a decode of who is in a microbatch under way, so that only steps beyond those leave tokens pending.
        may_be_pending = len(in_flight) >= self.limits.num_microbatches
        rows = advance(
            plan,
            self._decodes,
            self.kv_pages,
            may_be_pending=may_be_pending,
            may_be_constrained=bool(self._constrained),
        )
        self._decodes = rows.group
        schedule = Schedule(self._num_steps, rows, num_tokens, plan.num_short, tuple(self._newly_preempted))
        self._num_steps += 1
        self._newly_preempted.clear()
        in_flight.add(schedule, rows)
        self._lessons.scheduled(schedule, rows, now_s)
        return schedule

    def complete(self, schedule: Schedule, result: StepResult, now_s: float) -> Sequence[TokenOutput]:
        """Take in what a step sampled; steps complete in the order in which they were scheduled.

        Rows of requests that have ended meanwhile are dropped. A step that `fail_step` gave up brings nothing.
        """
        if self._in_flight.was_lost(schedule):
            return []
        assert len(result.token_ids) == len(schedule.rows), f"step {schedule.step} must bring a token id a row"
        rows = self._in_flight.oldest(schedule)
        self._lessons.completed(schedule, now_s)
        failed = self._end_failed(rows, result, now_s)
        outputs = StepOutputs(failed, rows.group.requests, result)
        if self._in_flight.land():
            outputs.drop(place for place, each in enumerate(rows.group.requests) if each.is_finished)
        self._take_decodes(rows, result, outputs, now_s)
        for place, (request, row) in enumerate(zip(rows.readers, rows.others, strict=True), rows.num_decodes):
            if not request.is_finished:
                self._take_prefill(request, row, place, result, outputs, now_s)
        self._queues.free_rested_slots()
        if self.suspects.is_watching:
            outputs.add(*self._end_guilty(self.suspects.succeeded(rows.requests, outputs), now_s))
        return outputs

    def fail_step(self, schedule: Schedule, now_s: float = 0.0) -> list[TokenOutput] | None:
        """A step failed and took all keys and values with it: every step in flight is given up, and all running requests start over.

        They keep their tokens and wait in their order, before all others of their priorities. Returns: those that end for it; None if an earlier failure had given this step up.
        """
        if self._in_flight.was_lost(schedule):
            return None
        requests = self._in_flight.give_up(schedule)
        self._lessons.lost()
        for request in self._queues.running[::-1]:
            self._queues.stop(request)
            self.kv_pages.release(request)
        self._queues.free_rested_slots()
        self.kv_pages.forget_all()
        return self._end_guilty(self.suspects.failed(requests, self._queues.waiting), now_s)

    # ---- inside

    def _under_way(self) -> Set[Request]:
        """Requests of the newest steps in flight, one fewer than there are stages: whoever was in the step before those has its token when the next one starts."""
        newest = self.limits.num_microbatches - 1
        return self._in_flight.newest(newest) if newest else frozenset()

    def _admit(self, plan: Plan, view: View, now_s: float) -> None:
        """Start waiting requests. Found pages are all claimed before any page is allocated, so that none is evicted meanwhile."""
        for request in plan.admitted:
            prefix = view.find_prefix(request)
            request.min_reserved_tokens = max(request.num_tokens, plan.num_reserved_tokens)
            self.kv_pages.claim(request, prefix)
            request.num_computed_tokens = len(prefix) * self.limits.page_size
        for request in plan.admitted:
            self._queues.start(request)
            request.num_prefill_tokens = request.num_tokens
            self.kv_pages.reserve(request, request.min_reserved_tokens)
            if request.first_scheduled_s is None:
                request.first_scheduled_s = now_s
                request.num_prefix_hit_tokens = request.num_computed_tokens

    def _take_decodes(self, rows: StepRows, result: StepResult, outputs: StepOutputs, now_s: float) -> None:
        """Give each decode its token; look at those that may end with it, or have filled a page."""
        requests, apart = rows.group.requests, rows.group.take(result.token_ids, outputs.dropped)
        apart.update(rows.crossings)
        if self._constrained:
            apart.update(place for place, each in enumerate(requests) if each.constraint is not None)
        for place in sorted(apart - outputs.dropped) if apart else ():
            self._register(requests[place], rows.num_decoded_tokens(place))
            reason = self._end_if_due(requests[place], now_s)
            if reason is not None:
                outputs.end(place, reason)

    def _take_prefill(
        self, request: Request, row: ScheduledRow, place: int, result: StepResult, outputs: StepOutputs, now_s: float
    ) -> None:
        """Take in a chunk, and its token if it was the last one."""
        self._register(request, row.start + row.num_tokens)
        given = result.prompt_logprobs[place] if result.prompt_logprobs else None
        prompt_logprobs = new_prompt_logprobs(request, row, given) if given else None
        if not row.does_sample:
            if prompt_logprobs:
                outputs.add(TokenOutput(request, request.sample_index, None, None, prompt_logprobs))
            return
        if request.first_token_s is None or request.parked_samples:
            self._take_first_token(request, now_s)
        token_id, logprobs = result.token_ids[place], result.logprobs[place] if result.logprobs else None
        request.token_ids.append(token_id)
        reason = self._end_if_due(request, now_s)
        stop_token_id = stop_token(request, token_id, reason)
        outputs.add(
            TokenOutput(request, request.sample_index, token_id, logprobs, prompt_logprobs, reason, stop_token_id)
        )

    def _register(self, request: Request, num_tokens: int) -> None:
        """So many tokens of it are computed by now: the cache is told of pages that are full."""
        if num_tokens >= request.next_block_end:
            self.kv_pages.register(request, num_tokens)

    def _end_if_due(self, request: Request, now_s: float) -> FinishReason | None:
        """End a request whose newest token is its last. Returns: why."""
        reason = request.end_reason()
        if reason is not None:
            self._end(request, reason, now_s)
        return reason

    def _end_failed(self, rows: StepRows, result: StepResult, now_s: float) -> list[TokenOutput]:
        """Constraints take in their tokens; requests whose token is of no use end."""
        outputs: list[TokenOutput] = []
        wrong = wrong_rows(rows, result, self.limits.vocab_size, bool(self._constrained))
        for request, fault in wrong:
            self.kv_pages.distrust(request)
            self._end(request, "error", now_s)
            outputs.append(ended_by(request, fault))
        return outputs

    def _end_guilty(self, guilty: Sequence[Request], now_s: float) -> list[TokenOutput]:
        """End those that make steps fail, and samples of theirs that nothing is computed of yet: it is the prompt that does."""
        ended = [each for request in guilty for each in (*request.parked_samples, request)]
        for request in ended:
            self._end(request, "error", now_s)
        return [ended_by(request, "internal_error") for request in ended]

    def _take_first_token(self, request: Request, now_s: float) -> None:
        """The prompt is computed: its other samples can share the pages, if they are still there."""
        if request.first_token_s is None:
            request.first_token_s = now_s
        if request.state is RequestState.RUNNING:
            for sample in self._queues.unpark(request):
                self.kv_pages.fork(request, sample)

    def _preempt(self, request: Request) -> None:
        request.num_preemptions += 1
        self._newly_preempted.append(request.request_id)
        self._in_flight.stops(request)
        self._queues.stop(request)
        self.kv_pages.release(request)

    def _end(self, request: Request, reason: FinishReason, now_s: float) -> None:
        """The one way out, from any state."""
        if request.state is RequestState.RUNNING:
            self._in_flight.stops(request)
        self._queues.leave(request)
        self.suspects.left(request)
        self.kv_pages.release(request)
        self._constrained.discard(request)
        request.finish_reason, request.finished_s = reason, now_s
        if not self.has_unfinished:
            self._decodes = DecodeGroup(())  # whoever was in the last step is let go
        samples = request.samples or (request,)
        if all(sample.is_finished for sample in samples):
            self.kv_pages.close(samples)
            self._groups.pop(samples[0].request_id, None)

    def check_integrity(self) -> None:
        """Raises: AssertionError, with a sentence, if any two records of the same thing disagree."""
        check_scheduler(self._queues, self.kv_pages, self._in_flight.requests)
        self._decodes.check_integrity()
