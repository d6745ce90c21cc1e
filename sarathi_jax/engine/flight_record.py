"""The file that a flight recorder leaves: its lines, checked when they are read. `docs/flight-recorder.md` describes every field.

JSON, one object a line: a header, the requests, the events in their order. No text and no token ids. Ends in .gz: compressed.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sarathi_jax.errors import ConfigError
from sarathi_jax.outputs import FinishReason
from sarathi_jax.scheduling.service_levels import INTERACTIVE

FORMAT = "sarathi-jax flight record"
VERSION = 1
GZIP_MAGIC = b"\x1f\x8b"


class Header(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="header"):
    """What was recorded, of which engine, and why it was written.

    policy_options: what `scheduling/policies/recorded.py` makes the same policy of.
    clock_s: the engine's clock when it was written; all other times are of the same clock. written_at: the same moment, UTC.
    num_dropped_events: events that the ring no longer held; a record of which any is missing can't be replayed.
    """

    format: str
    version: int
    reason: str
    written_at: str
    clock_s: float
    model: str
    replica: int
    policy: str
    policy_options: dict[str, Any] = {}
    is_overlapped: bool
    is_prefix_caching: bool
    limits: dict[str, int | float | bool | None]
    versions: dict[str, str]
    num_dropped_events: int
    num_requests: int
    num_events: int


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="request"):
    """One sample of one request: all that decisions depend on.

    request: its number in this file. leader: the number of its prompt's first sample, where there are several.
    num_resumed_tokens: output tokens that it came with.
    salt, client: a number for each cache salt and each client; 0 for none.
    blocks: numbers that stand for what its full KV blocks hold, prompt first, each with all before it: two requests have the same number where they
      begin with the same tokens, and only there.
    """

    request: int
    id: str
    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int
    num_resumed_tokens: int = 0
    leader: int | None = None
    sample_index: int = 0
    num_samples: int = 1
    priority: int = 0
    salt: int = 0
    slo_class: str = INTERACTIVE
    client: int = 0
    has_prompt_logprobs: bool = False
    blocks: list[int] = []


class Arrived(msgspec.Struct, frozen=True, tag_field="line", tag="arrived"):
    """A request was queued. requests: its samples, the leader first."""

    requests: list[int]


class Scheduled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="scheduled"):
    """A step was planned at now_s and dispatched by dispatched_s.

    decodes: requests and starts of rows of one token that sample, in order; None: those of the step before, each one token further.
    others: (place among the rows, request, start, tokens, whether it samples) of all other rows.
    admitted: (request, batch slot, KV pages) of requests that start, or start over. grown: (request, pages) that rows got in addition.
    num_running, num_waiting, num_free_pages: after this plan.
    """

    step: int
    now_s: float
    dispatched_s: float
    decodes: tuple[list[int], list[int]] | None = None
    others: list[tuple[int, int, int, int, bool]] = []
    admitted: list[tuple[int, int, list[int]]] = []
    grown: list[tuple[int, list[int]]] = []
    preempted: list[int] = []
    num_running: int
    num_waiting: int
    num_free_pages: int


class Idle(msgspec.Struct, frozen=True, tag_field="line", tag="idle"):
    """A step was asked for, and nothing could run. Only the first of several in a row, and those that changed something."""

    now_s: float


class Completed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="completed"):
    """A step's tokens came at end_s; the loop asked for them at asked_s.

    ended: requests that ended by it, and why. compiled: names and seconds of programs that were compiled since the step before completed.
    is_lost: a failure before it had given this step up; it brought nothing.
    """

    step: int
    asked_s: float
    end_s: float
    bucket: str
    bucket_tokens: int
    bucket_rows: int
    ended: list[tuple[int, FinishReason]] = []
    compiled: list[tuple[str, float]] = []
    is_lost: bool = False


class Failed(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="line", tag="failed"):
    """A step failed, was known to at now_s, and took all KV pages with it. ended: requests that ended for it, as they made steps fail, and why."""

    step: int
    now_s: float
    ended: list[tuple[int, FinishReason]] = []


class Aborted(msgspec.Struct, frozen=True, tag_field="line", tag="aborted"):
    """A request was ended with all its samples."""

    request: int
    now_s: float


class Finished(msgspec.Struct, frozen=True, tag_field="line", tag="finished"):
    """One sample was ended for a reason found outside the scheduler, such as a stop string."""

    request: int
    reason: FinishReason
    now_s: float


Event = Arrived | Scheduled | Idle | Completed | Failed | Aborted | Finished
_DECODER = msgspec.json.Decoder(Header | RequestFacts | Event)


@dataclass(frozen=True, slots=True)
class FlightRecord:
    """A record as it is read. requests: by number."""

    header: Header
    requests: Mapping[int, RequestFacts]
    events: list[Event]


def write_record(path: Path, header: Header, requests: Iterable[RequestFacts], events: Iterable[Event]) -> None:
    """Write a file whole or not at all. Raises: OSError."""
    unfinished = path.with_name(path.name + ".part")
    try:
        with gzip.open(unfinished, "wb", 5) if path.suffix == ".gz" else unfinished.open("wb") as file:
            for line in _lines(header, requests, events):
                file.write(line)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _lines(*parts: Any) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode
    header, *lists = parts
    yield encode(header) + b"\n"
    for each in lists:
        for line in each:
            yield encode(line) + b"\n"


def read_record(path: Path) -> FlightRecord:
    """Raises: ConfigError if the file is not there, is none of these, or does not hold together."""
    lines = _read_lines(path)
    try:
        first = msgspec.json.decode(lines[0], type=Header) if lines else None
    except msgspec.MsgspecError as error:
        raise _wrong(path, f"a first line that says so ({FORMAT})", str(error)) from error
    if first is None or first.format != FORMAT:
        raise _wrong(path, f"a first line that says so ({FORMAT})", "another one")
    if first.version != VERSION:
        raise ConfigError(
            f"{path} must be of version {VERSION} of the format, got {first.version}: read it with the version of sarathi-jax that wrote it."
        )
    requests: dict[int, RequestFacts] = {}
    events: list[Event] = []
    for number, line in enumerate(lines[1:], 2):
        try:
            each = _DECODER.decode(line)
        except msgspec.MsgspecError as error:
            raise _wrong(path, f"a request or an event in line {number}", str(error)) from error
        if isinstance(each, RequestFacts):
            requests[each.request] = each
        elif isinstance(each, Header):
            raise _wrong(path, "one header", f"another one in line {number}")
        else:
            events.append(each)
    if (len(requests), len(events)) != (first.num_requests, first.num_events):
        raise _wrong(
            path,
            f"{first.num_requests} requests and {first.num_events} events",
            f"{len(requests)} and {len(events)}: it was cut off",
        )
    missing = next((each for event in events for each in _named(event) if each not in requests), None)
    if missing is not None:
        raise _wrong(path, "a line of every request that it names", f"no line of request {missing}")
    return FlightRecord(first, requests, events)


def _named(event: Event) -> Iterable[int]:
    """The requests that an event is about."""
    match event:
        case Scheduled():
            decodes = event.decodes[0] if event.decodes else []
            others = [request for _, request, _, _, _ in event.others]
            pages = [request for request, *_ in (*event.admitted, *event.grown)]
            return [*decodes, *others, *pages, *event.preempted]
        case Completed() | Failed():
            return [request for request, _ in event.ended]
        case Arrived(requests):
            return requests
        case Aborted(request) | Finished(request):
            return [request]
        case Idle():
            return []


def _read_lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(path, "a file that can be read", str(error)) from error


def _wrong(path: Path, rule: str, got: str) -> ConfigError:
    return ConfigError(f"A flight record must have {rule}, got {path} with {got}: record again.")
