"""Why a request waited for its first step: what each plan between its arrival and its admission had run out of."""

import math
from collections.abc import Set
from dataclasses import dataclass

from sarathi_jax.engine.flight_record import Aborted, Arrived, Completed, Finished, Scheduled
from sarathi_jax.engine.record_steps import Look, Run
from sarathi_jax.engine.request_story import Place, Story


@dataclass(frozen=True, slots=True)
class QueueReason:
    """A part of the wait. requests: who stood in the way, at most MAX_NAMED. kind:

    loop        no step was planned yet: one was under way, or the loop was not running
    slots       as many requests ran as may
    budget      the step was full; requests: whose prompts it read
    preemption  the plan took pages from somebody who ran, and lets nobody in
    behind      others were to come first, and waited for room themselves
    pages       no room for the whole prompt beside what is kept free
    leader      a sample waits until the first one has read their prompt
    policy      none of these: the policy admits nobody in such a step
    unrecorded  the record does not go back that far
    """

    kind: str
    seconds: float
    num_steps: int
    requests: tuple[str, ...] = ()


MAX_NAMED = 4


def queue_reasons(run: Run, story: Story) -> list[QueueReason]:
    """Of all the time from arrival to the plan that admitted the request, or to its end, or to the last plan; the largest first."""
    arrival_s = story.facts.arrival_s
    first = story.admitted_to
    if first is None and any(place is not Place.QUEUED for place in story.places.values()):
        return []  # it ran already when the record begins
    until_s = story.end_s if first is None else first.plan.now_s
    queue = _Queue(run, story)
    looks = [look for look in run.looks if look.now_s >= arrival_s and (until_s is None or look.now_s < until_s)]
    ends_s = [look.now_s for look in looks[1:]] + [until_s if until_s is not None else run.record.header.clock_s]
    parts: list[tuple[str, float, int, tuple[str, ...]]] = []
    if looks or until_s is not None:
        kind = "loop" if story.is_whole else "unrecorded"
        parts.append((kind, (looks[0].now_s if looks else ends_s[-1]) - arrival_s, 0, ()))
    for look, end_s in zip(looks, ends_s, strict=False):
        kind, requests = queue.reason(look)
        parts.append((kind, end_s - look.now_s, 1, requests))
    return _merged(parts)


def _merged(parts: list[tuple[str, float, int, tuple[str, ...]]]) -> list[QueueReason]:
    groups: dict[str, list[tuple[str, float, int, tuple[str, ...]]]] = {}
    for part in parts:
        if part[1] > 0:
            groups.setdefault(part[0], []).append(part)
    reasons = [
        QueueReason(
            kind,
            sum(part[1] for part in each),
            sum(part[2] for part in each),
            tuple(dict.fromkeys(name for part in each for name in part[3]))[:MAX_NAMED],
        )
        for kind, each in groups.items()
    ]
    return sorted(reasons, key=lambda reason: -reason.seconds)


class _Queue:
    """Who stands before the request at each plan."""

    def __init__(self, run: Run, story: Story) -> None:
        self._run = run
        self._facts = story.facts
        self._ids = {number: facts.id for number, facts in run.record.requests.items()}
        self._ahead = _ahead_by_plan(run, story)
        leader = story.facts.leader
        # Samples wait until their leader has read the prompt.
        read = (step.end_s for step in run.ended if leader is not None and run.has_token(step, leader))
        self._leader_s = next(read, None) or math.inf

    def reason(self, look: Look) -> tuple[str, tuple[str, ...]]:
        """What kept the request out of one plan."""
        limits, step = self._run.record.header.limits, look.step
        ahead = self._ahead.get(id(step.plan) if step else None, ())
        names = tuple(self._ids[number] for number in ahead[:MAX_NAMED])
        if self._facts.leader is not None and look.now_s < self._leader_s:
            return "leader", (self._ids[self._facts.leader],)
        if step is None:
            return ("behind", names) if names else ("policy", ())
        if step.plan.preempted:
            return "preemption", tuple(self._ids[number] for number in step.plan.preempted)
        if step.plan.num_running >= int(limits["max_num_seqs"] or 0):
            return "slots", tuple(self._ids[row.request] for row in step.rows.written_out()[:MAX_NAMED])
        if step.rows.num_tokens >= int(limits["token_budget"] or 0):
            readers = self._run.num_prefill_tokens(step)
            return "budget", tuple(self._ids[number] for number in readers)[:MAX_NAMED]
        if names:
            return "behind", names
        return ("pages", ()) if self._lacks_pages(step.plan) else ("policy", ())

    def _lacks_pages(self, plan: Scheduled) -> bool:
        """Whether all that it came with has no room beside what is kept free; what a prefix would spare is not counted."""
        limits = self._run.record.header.limits
        num_tokens = self._facts.num_prompt_tokens + self._facts.num_resumed_tokens
        num_needed = -(-num_tokens // int(limits["page_size"] or 1))
        kept = float(limits["watermark"] or 0.0) * int(limits["num_pages"] or 0)
        return num_needed > plan.num_free_pages - kept


def _ahead_by_plan(run: Run, story: Story) -> dict[int | None, tuple[int, ...]]:
    """By plan: requests that waited before this one when it was made and were still waiting after it: of the same priority, or of a lower number."""
    waiting: dict[int, None] = {}
    found: dict[int | None, tuple[int, ...]] = {}
    mine = story.facts.leader if story.facts.leader is not None else story.facts.request
    has_arrived, facts, priority = False, run.record.requests, story.facts.priority
    for event in run.record.events:
        match event:
            case Arrived(requests):
                has_arrived = has_arrived or mine in requests
                if facts[requests[0]].priority < priority + (not has_arrived):
                    waiting[requests[0]] = None
            case Scheduled():
                _leave(waiting, {request for request, _, _ in event.admitted})
                preempted = [number for number in event.preempted if facts[number].priority <= priority]
                waiting = {**dict.fromkeys(preempted), **waiting}
                if has_arrived:
                    found[id(event)] = tuple(waiting)
            case Completed():
                _leave(waiting, {request for request, _ in event.ended})
            case Aborted(request) | Finished(request):
                _leave(waiting, {request})
            case _:
                pass
    return found


def _leave(waiting: dict[int, None], requests: Set[int]) -> None:
    for request in requests:
        waiting.pop(request, None)
