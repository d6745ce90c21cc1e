"""What happened to one request of a flight record: where it was at each step, when its tokens came, how it ended."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from sarathi_jax.engine.flight_record import (
    Aborted,
    Arrived,
    Completed,
    Event,
    Failed,
    Finished,
    FlightRecord,
    RequestFacts,
    Scheduled,
)
from sarathi_jax.engine.record_rows import Row
from sarathi_jax.engine.record_steps import Run, Step
from sarathi_jax.errors import ConfigError


class Place(Enum):
    """Where a request was when a step was planned."""

    ROW = "in the step"
    LEFT_OUT = "running, and left out of the step"
    UNDER_WAY = "in a step that the pipeline was still at"
    QUEUED = "waiting for its first step"
    PREEMPTED = "waiting, after a preemption"
    FAILED = "waiting, after a failed step"


@dataclass(frozen=True, slots=True)
class Token:
    """An output token: its number from 1, when it came, and the step that sampled it."""

    number: int
    at_s: float
    step: Step


@dataclass(slots=True)
class Story:
    """What happened to one request. places: of each step between its arrival and its end. preempted_in: the steps whose plans took its pages.

    is_whole: whether its arrival is in the record.
    """

    facts: RequestFacts
    is_whole: bool = False
    places: dict[Step, Place] = field(default_factory=dict)
    tokens: list[Token] = field(default_factory=list)
    preempted_in: list[Step] = field(default_factory=list)
    end: str | None = None
    end_s: float | None = None

    @property
    def admitted_to(self) -> Step | None:
        """Its first step, if the record has what it did before."""
        first = next(((step, place) for step, place in self.places.items() if place is not Place.QUEUED), None)
        is_known = self.is_whole or Place.QUEUED in self.places.values()
        return first[0] if first is not None and first[1] is Place.ROW and is_known else None

    @property
    def chunks(self) -> list[tuple[Step, Row]]:
        """Its rows that are no decodes of their own: prompt, and what is computed again."""
        found: list[tuple[Step, Row]] = []
        for step, place in self.places.items():
            row = step.rows.of(self.facts.request) if place is Place.ROW else None
            is_decode = row is not None and row.does_sample and row.num_tokens == 1
            if row is not None and not (is_decode and row.start >= self.facts.num_prompt_tokens):
                found.append((step, row))
        return found


def find_request(record: FlightRecord, name: str) -> RequestFacts:
    """The request of this id, the last of several, or of the number after a "#". Raises: ConfigError, with ids that are there."""
    found = [facts for facts in record.requests.values() if name in (facts.id, f"#{facts.request}")]
    if not found:
        known = ", ".join(facts.id for facts in list(record.requests.values())[:8])
        raise ConfigError(
            f"The record must hold the request, got {name}, which is not there: choose one of {known}, ..."
        )
    return found[-1]


def tell_story(run: Run, facts: RequestFacts) -> Story:
    """Follow one request through a record."""
    return _Teller(run, facts).tell()


class _Teller:
    def __init__(self, run: Run, facts: RequestFacts) -> None:
        self._run = run
        self._request = facts.request
        self._story = Story(facts)
        self._steps = {id(step.plan): step for step in run.steps}
        self._ends = {id(step.done): step for step in run.ended if step.done is not None}
        self._place: Place | None = self._first_place()
        num_behind = int(run.record.header.limits.get("num_microbatches") or 1) - 1
        self._newest: deque[Step] = deque(maxlen=num_behind)

    def tell(self) -> Story:
        for event in self._run.record.events:
            if self._story.end is None:
                self._follow(event)
        return self._story

    def _follow(self, event: Event) -> None:
        match event:
            case Arrived(requests) if self._request in requests:
                self._place = Place.QUEUED
                self._story.is_whole = True
            case Scheduled():
                self._planned(self._steps[id(event)])
            case Completed():
                self._completed(event)
            case Failed(_, now_s, ended) if self._request in (request for request, _ in ended):
                self._end("error", now_s)
            case Failed() if self._place in (Place.ROW, Place.PREEMPTED):
                self._place = Place.FAILED
            case Aborted(request, now_s) if request in (self._request, self._story.facts.leader):
                self._end("abort", now_s)
            case Finished(request, reason, now_s) if request == self._request:
                self._end(reason, now_s)
            case _:
                pass

    def _first_place(self) -> Place | None:
        """Where a request is when a ring begins that has lost its arrival: None if that is in the ring."""
        for event in self._run.record.events:
            if isinstance(event, Arrived) and self._request in event.requests:
                return None
            if isinstance(event, Scheduled) and any(self._request == request for request, _, _ in event.admitted):
                return Place.QUEUED
        return Place.ROW

    def _planned(self, step: Step) -> None:
        if self._place is None:
            return
        plan = step.plan
        if self._request in plan.preempted:
            self._place = Place.PREEMPTED
            self._story.preempted_in.append(step)
        row = step.rows.of(self._request)
        if row is not None:
            self._place = Place.ROW
            self._story.places[step] = Place.ROW
        elif self._place is not Place.ROW:
            self._story.places[step] = self._place
        elif any(other.rows.of(self._request) for other in self._newest):
            self._story.places[step] = Place.UNDER_WAY
        else:
            self._story.places[step] = Place.LEFT_OUT
        self._newest.append(step)

    def _completed(self, event: Completed) -> None:
        step = self._ends.get(id(event))
        reason = dict(event.ended).get(self._request)
        row = step.rows.of(self._request) if step is not None else None
        if step is not None and row is not None and self._run.has_token(step, self._request):
            number = row.start + row.num_tokens - self._story.facts.num_prompt_tokens + 1
            self._story.tokens.append(Token(number, event.end_s, step))
        if reason is not None:
            self._end(reason, event.end_s)

    def _end(self, reason: str, now_s: float) -> None:
        self._story.end, self._story.end_s = reason, now_s
