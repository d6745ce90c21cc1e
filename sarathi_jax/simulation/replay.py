"""A recorded run of an engine, made again: the same calls into a new production scheduler, in the same order and at the same times. Its decisions must be the
same, byte for byte: requests, starts, tokens, batch slots, KV pages, preemptions and ends. If they are not, the scheduler depends on something that it must not.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from sarathi_jax.engine.flight_dump import scheduled_line
from sarathi_jax.engine.flight_record import (
    Aborted,
    Arrived,
    Completed,
    Event,
    Failed,
    Finished,
    FlightRecord,
    Idle,
    Scheduled,
)
from sarathi_jax.engine.record_rows import Row, RowReader
from sarathi_jax.engine.step_notes import StepNotes
from sarathi_jax.errors import ConfigError, RequestError
from sarathi_jax.outputs import TokenLogprobs
from sarathi_jax.scheduling.policies.recorded import policy_from
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.replay_requests import STOP, VOCAB_SIZE, RecordedRequests

SOME_LOGPROBS = TokenLogprobs(0.0, 1, ())
type Observe = Callable[[Schedule, Completed, float], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the two runs part. event: its number among the record's, from 0. what: of the decision. recorded, replayed: what it was in each."""

    event: int
    step: int | None
    what: str
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay. decisions: SHA-256 over all decisions that were alike, and num_bytes what it was over."""

    num_events: int
    num_requests: int
    num_steps: int
    num_preemptions: int
    num_prefix_hit_tokens: int
    num_bytes: int
    decisions: str
    difference: Difference | None


class Parted(Exception):
    """The replayed run does something else than the recorded one."""

    def __init__(self, what: str, recorded: object, replayed: object) -> None:
        super().__init__(what)
        self.what, self.recorded, self.replayed = what, str(recorded), str(replayed)


def replay(record: FlightRecord, observe: Observe | None = None) -> Replay:
    """Make a recorded run again.

    observe: is told of each step that completed, in order, of its end, and of what it took: from when it could begin until its tokens were on the host. Not
      of lost steps, nor of those that waited for a compile.
    Raises: ConfigError if the record has no beginning, or names a policy that is not here.
    """
    if record.header.num_dropped_events:
        raise ConfigError(
            f"A record must hold a run from its beginning to be replayed, got one whose first {record.header.num_dropped_events} events the ring had"
            " dropped: record with a larger flight_recorder, or write the record sooner."
        )
    return _Run(record, observe).run()


class _Run:
    def __init__(self, record: FlightRecord, observe: Observe | None) -> None:
        self._record = record
        self._observe = observe
        self._scheduler = make_scheduler(record)
        self._requests = RecordedRequests(record)
        self._numbers: dict[str, int] = {}
        self._notes = StepNotes(self._numbers, self._scheduler.limits.page_size)
        self._recorded_rows, self._replayed_rows = RowReader(), RowReader()
        self._in_flight: dict[int, tuple[Schedule, float]] = {}
        self._last_end_s = float("-inf")
        self._hash = hashlib.sha256()
        self._num_bytes = self._num_steps = self._num_preemptions = self._num_hits = 0

    def run(self) -> Replay:
        difference: Difference | None = None
        for number, event in enumerate(self._record.events):
            step = event.step if isinstance(event, Scheduled | Completed | Failed) else None
            try:
                self._make(event)
            except Parted as parted:
                difference = Difference(number, step, parted.what, parted.recorded, parted.replayed)
            except (AssertionError, RequestError) as error:
                difference = Difference(number, step, type(event).__name__.lower(), "done", f"{error}")
            if difference is not None:
                break
        return Replay(
            len(self._record.events),
            len(self._record.requests),
            self._num_steps,
            self._num_preemptions,
            self._num_hits,
            self._num_bytes,
            self._hash.hexdigest(),
            difference,
        )

    def _make(self, event: Event) -> None:
        """One recorded call. Raises: Parted; what the scheduler raises."""
        match event:
            case Scheduled():
                self._schedule(event)
            case Completed():
                self._complete(event)
            case Arrived(numbers):
                self._arrive(numbers)
            case Idle(now_s):
                schedule = self._scheduler.schedule(now_s)
                _compare("a step", "none", "none" if schedule is None else f"{len(schedule.rows)} rows")
            case Failed():
                self._fail(event)
            case Aborted(request, now_s):
                self._scheduler.abort(self._requests.facts(request).id, now_s)
            case Finished(request, reason, now_s):
                is_ended = self._scheduler.finish(self._requests.facts(request).id, reason, now_s)
                _compare("an end found outside", True, is_ended)

    def _arrive(self, numbers: list[int]) -> None:
        self._requests.add(self._scheduler, numbers)
        for number in numbers:
            request_id = self._requests.facts(number).id
            if request_id in self._numbers:
                self._notes.break_off()
            self._numbers[request_id] = number

    def _schedule(self, event: Scheduled) -> None:
        schedule = self._scheduler.schedule(event.now_s)
        if schedule is None:
            raise Parted("a step", f"step {event.step}", "none")
        note = self._notes.take(schedule)
        line = scheduled_line(note, event.now_s, event.dispatched_s, (0, 0, 0), is_whole=not note.num_steps_on)
        recorded = self._recorded_rows.rows(event).written_out()
        replayed = self._replayed_rows.rows(line).written_out()
        ours, theirs = decision(line, replayed), decision(event, recorded)
        if ours != theirs:
            raise _parted(event, recorded, line, replayed)
        self._hash.update(ours)
        self._num_bytes += len(ours)
        self._num_steps += 1
        self._num_preemptions += len(event.preempted)
        starts = {row.request: row.start for row in replayed}
        self._num_hits += sum(starts[request] for request, _, _ in event.admitted)
        self._in_flight[event.step] = schedule, event.now_s

    def _fail(self, event: Failed) -> None:
        self._notes.break_off()
        outputs = self._scheduler.fail_step(self._in_flight.pop(event.step)[0], event.now_s)
        ended = [(self._numbers[output.request.request_id], output.finish_reason) for output in outputs or ()]
        _compare("requests that ended", event.ended, ended)
        for number, _ in event.ended:
            self._notes.forget(number)
        self._last_end_s = event.now_s

    def _complete(self, event: Completed) -> None:
        schedule, start_s = self._in_flight.pop(event.step)
        ended = dict(event.ended)
        result = self._result(schedule, ended)
        outputs = self._scheduler.complete(schedule, result, event.end_s)
        found = {
            self._numbers[output.request.request_id]: output.finish_reason
            for output in outputs
            if output.finish_reason is not None
        }
        _compare("requests that ended", ended, found)
        self._hash.update(msgspec.json.encode(event.ended))
        for number in ended:
            self._notes.forget(number)
        seconds, self._last_end_s = event.end_s - max(start_s, self._last_end_s), event.end_s
        if self._observe is not None and not event.is_lost and not event.compiled:
            self._observe(schedule, event, seconds)

    def _result(self, schedule: Schedule, ended: Mapping[int, str]) -> StepResult:
        """What the device sent, with tokens that are alike where the recorded ones were."""
        token_ids: list[int] = []
        is_finite: list[bool] = []
        prompt_logprobs: list[list[TokenLogprobs] | None] = []
        for row in schedule.rows:
            number = self._numbers[row.request_id]
            reason = ended.get(number)
            token_id = STOP if reason == "stop" else self._requests.token(number, row.start + row.num_tokens)
            token_ids.append(token_id if row.does_sample else 0)
            is_finite.append(reason != "error")
            prompt_logprobs.append(_prompt_logprobs(row))
        has_any = any(each is not None for each in prompt_logprobs)
        return StepResult(
            token_ids, None if all(is_finite) else is_finite, prompt_logprobs=prompt_logprobs if has_any else None
        )


def make_scheduler(record: FlightRecord) -> Scheduler:
    """The production scheduler with a record's limits, empty. Raises: ConfigError if the policy or a limit is not known here."""
    header = record.header
    try:
        return Scheduler(
            policy_from(header.policy, header.policy_options),
            is_prefix_caching=header.is_prefix_caching,
            **{**header.limits, "vocab_size": VOCAB_SIZE},  # pyright: ignore[reportArgumentType]
        )
    except TypeError as error:
        raise ConfigError(
            f"A record's limits must be the scheduler's, got {error}: replay with the version of sarathi-jax that recorded."
        ) from error


def decision(event: Scheduled, rows: list[Row]) -> bytes:
    """What a step decided, in the one way there is to write it."""
    places = [(row.request, row.start, row.num_tokens, row.does_sample) for row in rows]
    return msgspec.json.encode((event.step, places, event.admitted, event.grown, event.preempted))


def _prompt_logprobs(row: ScheduledRow) -> list[TokenLogprobs] | None:
    """As many as the device sends: one for each prompt token that follows one of the row's."""
    if row.sampling.prompt_logprobs is None:
        return None
    return [SOME_LOGPROBS] * max(min(row.num_tokens, row.num_prompt_tokens - row.start - 1), 0)


def _compare(what: str, recorded: object, replayed: object) -> None:
    if recorded != replayed:
        raise Parted(what, recorded, replayed)


def _parted(event: Scheduled, recorded: list[Row], line: Scheduled, replayed: list[Row]) -> Parted:
    """Which part of a decision it is, and the first place where it is another one."""
    for what in ("step", "preempted", "admitted", "grown"):
        if getattr(event, what) != getattr(line, what):
            return Parted(what, getattr(event, what), getattr(line, what))
    for place, (one, other) in enumerate(zip(recorded, replayed, strict=False)):
        if one != other:
            return Parted(f"row {place}", one, other)
    return Parted("rows", len(recorded), len(replayed))
