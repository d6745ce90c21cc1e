"""A flight record as steps: when each was planned, dispatched and done, and what was in it. Knows no causes, and of no request in particular."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sarathi_jax.engine.flight_record import (
    Aborted,
    Arrived,
    Completed,
    Failed,
    Finished,
    FlightRecord,
    Idle,
    Scheduled,
)
from sarathi_jax.engine.record_rows import Row, RowReader, StepRows


@dataclass(slots=True, eq=False)
class Step:
    """A step of a record.

    before_s: when the step before it ended or failed. end_s: None while it was in flight when the record was written.
    place: among the steps that ended. is_failed: it failed, or one before it did and it was of no use.
    """

    plan: Scheduled
    rows: StepRows
    done: Completed | None = None
    end_s: float | None = None
    before_s: float = -math.inf
    place: int = -1
    is_failed: bool = False

    @property
    def number(self) -> int:
        return self.plan.step

    @property
    def bucket(self) -> str:
        return self.done.bucket if self.done else "unknown"

    @property
    def ran_s(self) -> float:
        """Seconds from when it was dispatched and the one before it was done. Only of steps that ended."""
        assert self.end_s is not None, "the step has ended"
        return self.end_s - max(self.plan.dispatched_s, self.before_s)


@dataclass(frozen=True, slots=True)
class Look:
    """The scheduler was asked for a step, at now_s; step: what came of it, None if nothing could run."""

    now_s: float
    step: Step | None


@dataclass(frozen=True, slots=True)
class Run:
    """All steps of a record.

    steps: as they were planned. ended: those that ended, in that order. looks: as they happened.
    gone: requests that ended, with the place of the first step whose token they did not get any more.
    """

    record: FlightRecord
    steps: list[Step]
    ended: list[Step]
    looks: list[Look]
    gone: dict[int, int]

    def num_prefill_tokens(self, step: Step) -> dict[int, int]:
        """Of rows that don't extend an output: by request, prompt tokens and those that are computed again after a preemption."""
        found = {row.request: row.num_tokens for _, row in step.rows.others if not self._is_decode(row)}
        decodes = step.rows.decodes
        if not step.rows.num_steps_on:  # one token further all of them extend outputs
            for request, start in zip(decodes.requests, decodes.starts, strict=True):
                if start < self.record.requests[request].num_prompt_tokens:
                    found[request] = 1
        return found

    def has_token(self, step: Step, request: int) -> bool:
        """Whether a step brought a token to a request that had a row in it; one that had ended, or ended by wrong logits, gets none."""
        row = step.rows.of(request)
        is_there = row is not None and row.does_sample and not step.is_failed
        return is_there and step.place < self.gone.get(request, step.place + 1)

    def token_gaps(self) -> Iterator[float]:
        """Seconds between consecutive tokens of all requests."""
        last_s: dict[int, float] = {}
        for step in self.ended:
            if step.is_failed or step.end_s is None:
                continue
            for request in step.rows.sampling():
                if step.place < self.gone.get(request, step.place + 1):
                    before_s = last_s.get(request)
                    last_s[request] = step.end_s
                    if before_s is not None:
                        yield step.end_s - before_s

    def _is_decode(self, row: Row) -> bool:
        is_one = row.does_sample and row.num_tokens == 1
        return is_one and row.start >= self.record.requests[row.request].num_prompt_tokens


def read_run(record: FlightRecord) -> Run:
    """Raises: ConfigError if the events don't hold together."""
    reader = _Reader(record)
    for event in record.events:
        match event:
            case Scheduled():
                reader.planned(event)
            case Idle(now_s):
                reader.run.looks.append(Look(now_s, None))
            case Completed():
                reader.ended(event.step, event.end_s, event)
            case Failed(step, now_s, ended):
                reader.ended(step, now_s, None)
                reader.gone(request for request, _ in ended)
            case Aborted(leader):
                reader.gone(each.request for each in record.requests.values() if leader in (each.request, each.leader))
            case Finished(request):
                reader.gone([request])
            case Arrived():
                pass
    return reader.run


class _Reader:
    def __init__(self, record: FlightRecord) -> None:
        self.run = Run(record, [], [], [], {})
        self._rows = RowReader()
        self._in_flight: dict[int, Step] = {}
        self._last_s = -math.inf

    def planned(self, event: Scheduled) -> None:
        step = self._in_flight[event.step] = Step(event, self._rows.rows(event))
        self.run.steps.append(step)
        self.run.looks.append(Look(event.now_s, step))

    def ended(self, number: int, end_s: float, done: Completed | None) -> None:
        step = self._in_flight.pop(number, None)
        # A ring may begin between a step's plan and its end.
        if step is not None:
            step.end_s, step.before_s, step.done, step.place = end_s, self._last_s, done, len(self.run.ended)
            step.is_failed = done is None or done.is_lost
            self.run.ended.append(step)
        self._last_s = end_s
        if done is not None:
            self.gone(request for request, reason in done.ended if reason != "error")
            for request, reason in done.ended:
                if reason == "error":
                    self.run.gone.setdefault(request, len(self.run.ended) - 1)

    def gone(self, requests: Iterable[int]) -> None:
        for request in requests:
            self.run.gone.setdefault(request, len(self.run.ended))


def steps_between(ended: Sequence[Step], start_s: float, end_s: float) -> list[Step]:
    """Those that ended after start_s and by end_s, in order."""
    first = bisect_right(ended, start_s, key=_end_s)
    return list(ended[first : bisect_right(ended, end_s, key=_end_s)])


def _end_s(step: Step) -> float:
    return math.inf if step.end_s is None else step.end_s
