"""From what a flight recorder holds in memory to a file: blocks and salts become numbers that tell no more than which of them are alike."""

import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sarathi_jax.engine import flight_notes as notes
from sarathi_jax.engine.flight_record import (
    FORMAT,
    VERSION,
    Aborted,
    Arrived,
    Completed,
    Event,
    Failed,
    Finished,
    FlightRecord,
    Header,
    Idle,
    RequestFacts,
    Scheduled,
    write_record,
)
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.step_notes import Decodes, StepNote, page_ids
from sarathi_jax.errors import ConfigError

PACKAGES = ("sarathi-jax", "jax", "jaxlib", "numpy")
EVENTS_AT_A_TIME, PAUSE_S = 32, 1e-3


def dump(recorder: FlightRecorder, path: Path, reason: str) -> None:
    """Write what a recorder holds now. Raises: EngineError if it holds nothing any more; ConfigError if the file can't be written."""
    write_snapshot(recorder, recorder.snapshot(), path, reason)


def write_snapshot(
    recorder: FlightRecorder, snapshot: notes.Snapshot, path: Path, reason: str, *, is_beside_loop: bool = False
) -> None:
    """Write what a recorder held. Raises: ConfigError if the file can't be written.

    is_beside_loop: in a thread next to a running engine: stand back every few events, so that the engine gets the interpreter when it needs it.
    """
    events = event_lines(snapshot.events)
    if is_beside_loop:
        events = paced(events)
    try:
        write_record(path, header(recorder, snapshot, reason), request_facts(snapshot), events)
    except OSError as error:
        raise ConfigError(
            f"A flight record must be written to a file, got {path}: {error}. Choose a folder that is there, and has room."
        ) from error


def record_of(recorder: FlightRecorder, snapshot: notes.Snapshot) -> FlightRecord:
    """What a recorder held, as it would be read from a file."""
    requests = {facts.request: facts for facts in request_facts(snapshot)}
    return FlightRecord(header(recorder, snapshot, "asked for"), requests, list(event_lines(snapshot.events)))


def paced(events: Iterator[Event]) -> Iterator[Event]:
    """The same, with a pause every EVENTS_AT_A_TIME."""
    for number, event in enumerate(events):
        if not number % EVENTS_AT_A_TIME:
            time.sleep(PAUSE_S)
        yield event


def header(recorder: FlightRecorder, snapshot: notes.Snapshot, reason: str) -> Header:
    """What stands in the first line."""
    scheduler = recorder.scheduler
    limits = scheduler.limits
    return Header(
        format=FORMAT,
        version=VERSION,
        reason=reason,
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        clock_s=snapshot.clock_s,
        model=recorder.model,
        replica=recorder.replica,
        policy=scheduler.policy_name,
        policy_options=recorder.policy_options,
        is_overlapped=recorder.is_overlapped,
        is_prefix_caching=scheduler.kv_pages.is_prefix_caching,
        limits={name: getattr(limits, name) for name in type(limits).__dataclass_fields__},
        versions=versions(),
        num_dropped_events=snapshot.num_dropped,
        num_requests=len(snapshot.requests),
        num_events=len(snapshot.events),
    )


@cache
def versions() -> dict[str, str]:
    """Of what decides and what runs."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a plain checkout
            continue
    return found


def request_facts(snapshot: notes.Snapshot) -> list[RequestFacts]:
    """One line a sample, by number."""
    block_numbers: dict[int, int] = {}
    salt_numbers: dict[str, int] = {"": 0}
    client_numbers: dict[str, int] = {"": 0}
    return [
        RequestFacts(
            request=note.number,
            id=note.request_id,
            arrival_s=note.arrival_s,
            num_prompt_tokens=note.num_prompt_tokens,
            max_tokens=note.max_tokens,
            num_resumed_tokens=note.num_resumed_tokens,
            leader=note.leader,
            sample_index=note.sample_index,
            num_samples=note.num_samples,
            priority=note.priority,
            salt=salt_numbers.setdefault(note.cache_salt, len(salt_numbers)),
            slo_class=note.slo_class,
            client=client_numbers.setdefault(note.client, len(client_numbers)),
            has_prompt_logprobs=note.has_prompt_logprobs,
            blocks=[block_numbers.setdefault(digest, len(block_numbers)) for digest in note.digests],
        )
        for note in sorted(snapshot.requests)
    ]


def event_lines(events: "list[notes.Note]") -> Iterator[Event]:
    """One line an event."""
    last: Decodes | None = None
    for each in events:
        match each:
            case notes.ScheduledNote(_, note, now_s, dispatched_s, num_running, num_waiting, num_free_pages):
                does_go_on, last = note.decodes is last, note.decodes  # notes are of all steps, one after the other
                counts = num_running, num_waiting, num_free_pages
                yield scheduled_line(note, now_s, dispatched_s, counts, is_whole=not does_go_on)
            case notes.CompletedNote(_, step, asked_s, end_s, bucket, ended, compiled, is_lost):
                yield Completed(
                    step=step,
                    asked_s=asked_s,
                    end_s=end_s,
                    bucket=bucket.name,
                    bucket_tokens=bucket.num_tokens,
                    bucket_rows=bucket.num_rows,
                    ended=list(ended),
                    compiled=list(compiled),
                    is_lost=is_lost,
                )
            case notes.ArrivedNote(_, requests):
                yield Arrived(list(requests))
            case notes.IdleNote(_, now_s):
                yield Idle(now_s)
            case notes.FailedNote(_, step, now_s, ended):
                yield Failed(step, now_s, list(ended))
            case notes.AbortedNote(_, request, now_s):
                yield Aborted(request, now_s)
            case notes.FinishedNote(_, request, reason, now_s):
                yield Finished(request, reason, now_s)


def scheduled_line(
    note: StepNote, now_s: float, dispatched_s: float, counts: tuple[int, int, int], *, is_whole: bool
) -> Scheduled:
    """A step's line. is_whole: write its decodes out; if not, they are those of the step before, a token further."""
    num_running, num_waiting, num_free_pages = counts
    starts = [start + note.num_steps_on for start in note.decodes.starts] if is_whole else []
    return Scheduled(
        step=note.step,
        now_s=now_s,
        dispatched_s=dispatched_s,
        decodes=(list(note.decodes.requests), starts) if is_whole else None,
        others=list(note.others),
        admitted=[(request, slot, page_ids(pages)) for request, slot, pages in note.admitted],
        grown=[(request, page_ids(pages)) for request, pages in note.grown],
        preempted=list(note.preempted),
        num_running=num_running,
        num_waiting=num_waiting,
        num_free_pages=num_free_pages,
    )
