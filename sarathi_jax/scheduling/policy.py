"""What a policy sees and what it answers. A policy is a pure function: the same view gives the same plan, and planning changes nothing.

A policy may read requests; only the scheduler changes them.
"""

from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple, Protocol, runtime_checkable

from sarathi_jax.scheduling.kv_pages import KVPages
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.waiting_queue import WaitingQueue


class Plan(NamedTuple):
    """What the next step does.

    decodes: running requests that have read all they had, and get one token more. prefills: (request, number of its tokens to compute) of all others. Both in the
      policy's order; decodes come first.
    admitted: the waiting requests among prefills; each starts with the cached pages that the view found for it.
    preempted: running requests that lose their pages first, in this order; each goes to the front of those who wait with its priority.
    num_reserved_tokens: tokens whose pages each admitted request takes at least, however few it has.
    has_prefill: whether a chunk reads tokens that its request had at its admission; the next view tells it as `was_prefill`.
    """

    prefills: Sequence[tuple[Request, int]]
    admitted: Sequence[Request] = ()
    preempted: Sequence[Request] = ()
    num_reserved_tokens: int = 0
    has_prefill: bool = False
    decodes: Sequence[Request] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum([num_tokens for _, num_tokens in self.prefills])

    @property
    def num_short(self) -> int:
        """Chunks of one token."""
        return len(self.decodes) + len([num_tokens for _, num_tokens in self.prefills if num_tokens == 1])

    @property
    def chunks(self) -> Sequence[tuple[Request, int]]:
        """Of all requests in the step: (request, number of its tokens to compute)."""
        return [*[(request, 1) for request in self.decodes], *self.prefills]


class PageLedger:
    """Counts pages while a plan is made, as if the plan were carried out; touches no page."""

    def __init__(self, kv_pages: KVPages) -> None:
        self.num_available = kv_pages.pool.num_available
        self._pool = kv_pages.pool
        self._changes: dict[int, int] = {}

    def take(self, num_pages: int) -> None:
        self.num_available -= num_pages

    def release(self, request: Request) -> None:
        """Count the pages that a running request holds alone as available."""
        for page_id in request.block_table.tolist():
            self._changes[page_id] = self._changes.get(page_id, 0) - 1
            self.num_available += self._ref_count(page_id) == 0

    def num_idle(self, page_ids: Iterable[int]) -> int:
        """How many of these cached pages nobody holds, so that claiming them makes them unavailable."""
        return sum(self._ref_count(page_id) == 0 for page_id in page_ids)

    def claim(self, page_ids: Sequence[int]) -> None:
        self.num_available -= self.num_idle(page_ids)
        for page_id in page_ids:
            self._changes[page_id] = self._changes.get(page_id, 0) + 1

    def _ref_count(self, page_id: int) -> int:
        return self._pool.ref_count(page_id) + self._changes.get(page_id, 0)


class View:
    """The scheduler's state as a policy sees it.

    running: admitted requests by priority, the lowest number first, and of one priority by arrival. waiting: likewise, with preempted ones in front of theirs.
    under_way: requests in a microbatch that stages of a pipeline are still at. num_free_slots: how many requests may be admitted.
    was_prefill: whether the last step that was scheduled had `Plan.has_prefill`.
    is_partial: whether others wait as well, who may not be admitted now (`scheduling.suspects`).
    """

    __slots__ = (
        "_kv_pages", "_prefixes", "is_partial", "limits", "now_s", "num_free_slots", "running", "under_way", "waiting",
        "was_prefill",
    )  # fmt: skip

    def __init__(
        self,
        now_s: float,
        limits: SchedulerLimits,
        running: Sequence[Request],
        waiting: Iterable[Request],
        kv_pages: KVPages,
        *,
        under_way: Set[Request] = frozenset(),
        num_free_slots: int | None = None,
        was_prefill: bool = False,
        is_partial: bool = False,
    ) -> None:
        self.now_s = now_s
        self.limits = limits
        self.running = running
        self.waiting = waiting if isinstance(waiting, WaitingQueue) else WaitingQueue(waiting)
        self.under_way = under_way
        self.num_free_slots = limits.max_num_seqs - len(running) if num_free_slots is None else num_free_slots
        self.was_prefill = was_prefill
        self.is_partial = is_partial
        self._kv_pages = kv_pages
        self._prefixes: dict[str, list[int]] = {}

    def ledger(self) -> PageLedger:
        """A fresh count of the pages there are."""
        return PageLedger(self._kv_pages)

    def find_prefix(self, request: Request) -> Sequence[int]:
        """The pages that a waiting request would find on admission."""
        if request.request_id not in self._prefixes:
            self._prefixes[request.request_id] = self._kv_pages.find_prefix(request)
        return self._prefixes[request.request_id]


class Policy(Protocol):
    """Decides what the next step does.

    A plan has to keep the token budget, give every request at most one chunk of at most what it is behind, and to those under way none but the next chunk of a
    prompt, preempt only running requests, give none of those a chunk, admit only requests with no row in flight, and no more than there are free slots, and take
    no more pages than there are: an admitted request takes those of all tokens that it has, and of `num_reserved_tokens` if these are more, a running one those
    that its chunk needs.
    """

    def check(self, limits: SchedulerLimits) -> None:
        """Raises: ConfigError if these limits allow a request that the policy could never run."""
        ...

    def plan(self, view: View) -> Plan: ...


@runtime_checkable
class LearningPolicy(Policy, Protocol):
    """A policy that is also told what came of its plans. It may change what it knows here, and never in `plan`."""

    def arrived(self, request: Request) -> None:
        """A request was queued, the first of its samples if it has several. `num_expected_hit_tokens` of it is known."""
        ...

    def scheduled(self, schedule: Schedule, requests: Sequence[Request], now_s: float) -> None:
        """A plan was carried out, and the step is to be run. requests: of its rows."""
        ...

    def completed(self, schedule: Schedule, seconds: float | None, now_s: float) -> None:
        """A step is done; they are in the order in which they were scheduled.

        seconds: since it could begin, the one before it being done; None in a pipeline, where others' time is in it.
        """
        ...

    def lost(self) -> None:
        """All steps in flight were given up: they complete no more."""
        ...
