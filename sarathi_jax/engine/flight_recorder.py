"""The flight recorder: a ring of the calls into a scheduler, in their order, with what was decided and how long steps took. Always on, and cheap.

It keeps no text and no token ids, only what decisions depend on, so that `simulation/replay.py` can make the same calls again and `explain` can say why a token
was late. What it costs is counted in microseconds a step: a decode that goes on as in the step before is not looked at (`step_notes.py`), requests are summed up
when they end, and files are made (`flight_dump.py`) only when somebody asks for one. A fault of its own stops the recording and nothing else.
"""

import logging
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Protocol

from sarathi_jax.clock import Clock
from sarathi_jax.engine.executor import StepShape
from sarathi_jax.engine.flight_notes import (
    NO_DIGESTS,
    AbortedNote,
    ArrivedNote,
    Compiled,
    CompletedNote,
    FailedNote,
    FinishedNote,
    IdleNote,
    Note,
    RequestNote,
    ScheduledNote,
    Snapshot,
)
from sarathi_jax.engine.stall_spotter import StallSpotter
from sarathi_jax.engine.step_notes import StepNote, StepNotes
from sarathi_jax.errors import EngineError
from sarathi_jax.outputs import FinishReason
from sarathi_jax.scheduling.policies.recorded import policy_options
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.token_output import TokenOutput

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
# What things take in memory, about: an event with its numbers, a request's facts, a request among a step's decodes.
EVENT_BYTES, REQUEST_BYTES, DECODE_BYTES = 320, 900, 12


class Watch(Protocol):
    """Is told of every step, and asks for a dump when something is wrong with one."""

    def scheduled(self, note: StepNote, left_out: Sequence[int]) -> None: ...

    def completed(self, note: CompletedNote, start_s: float) -> None: ...

    def failed(self, note: FailedNote) -> None: ...

    def close(self) -> None: ...


def _guarded[**P](hook: Callable[P, None]) -> Callable[P, None]:
    """A hook of the recorder: does nothing once one has failed, and never raises into the loop."""

    @wraps(hook)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        recorder: Any = args[0]
        if recorder.fault is None:
            try:
                hook(*args, **kwargs)
            except Exception as error:
                recorder.fault = error
                logger.exception("the flight recorder stopped: this is a fault of it; please report it")

    return call


class FlightRecorder:
    """Notes what happens to one scheduler. Its owner calls a hook after each call into the scheduler.

    Args:
      scheduler: fresh, without requests.
      max_events: kept; the oldest ones go first, and earlier if they take more than `max_bytes`.
      model, replica: what files are to say of the engine.
      compiled: programs that were compiled so far; what is appended from now on was compiled while requests waited.

    fault: what stopped the recording, if anything did. watch: what is told of steps; None: nothing is. num_stalls: decodes left out, added up over steps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        *,
        max_events: int,
        is_overlapped: bool,
        max_bytes: int = MAX_BYTES,
        model: str = "",
        replica: int = 0,
        compiled: Sequence[Compiled] = (),
    ) -> None:
        self.scheduler = scheduler
        self.model = model
        self.replica = replica
        self.is_overlapped = is_overlapped
        self.policy_options = policy_options(scheduler.policy)
        self.fault: Exception | None = None
        self.watch: Watch | None = None
        self.num_stalls = 0
        self._clock = clock
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._compiled = compiled
        self._num_compiled = len(compiled)
        self._events: deque[Note] = deque()
        self._num_bytes = 0
        self._num_dropped = 0
        self._num_requests = 0
        self._numbers: dict[str, int] = {}
        self._live: dict[int, Request] = {}
        self._ended: deque[tuple[int, RequestNote]] = deque()  # with the number of the event that ended it
        self._notes = StepNotes(self._numbers, scheduler.limits.page_size)
        self._spotter = StallSpotter(scheduler, self._live)
        self._starts_s: dict[int, float] = {}  # of steps in flight
        self._asked_s: float | None = None
        self._is_idle = False
        self._idle_counts = (0, 0, 0)

    # ---- hooks

    @_guarded
    def arrived(self, samples: Sequence[Request]) -> None:
        """`Scheduler.add` queued these."""
        numbers: list[int] = []
        for sample in samples:
            if sample.request_id in self._numbers:
                self._notes.break_off()  # a step may hold the same ids and not the same requests
            self._numbers[sample.request_id] = self._num_requests
            self._live[self._num_requests] = sample
            numbers.append(self._num_requests)
            self._num_requests += 1
        self._append(ArrivedNote(EVENT_BYTES + REQUEST_BYTES * len(samples), tuple(numbers)))

    @_guarded
    def aborted(self, ended: Sequence[Request], now_s: float) -> None:
        """`Scheduler.abort` ended these samples of a prompt, if any."""
        if ended:
            leader = self._numbers[ended[0].request_id] - ended[0].sample_index
            num_bytes = EVENT_BYTES + sum([self._end(request) for request in ended])
            self._append(AbortedNote(num_bytes, leader, now_s))

    @_guarded
    def finished(self, request: Request, reason: FinishReason, now_s: float) -> None:
        """`Scheduler.finish` ended this one."""
        number = self._numbers[request.request_id]
        self._append(FinishedNote(EVENT_BYTES + self._end(request), number, reason, now_s))

    @_guarded
    def scheduled(self, schedule: Schedule | None, now_s: float) -> None:
        """`Scheduler.schedule` planned a step, which has been dispatched; None: it planned none."""
        scheduler = self.scheduler
        counts = scheduler.num_running, scheduler.num_waiting, scheduler.num_free_pages
        if schedule is None:
            if not self._is_idle or counts != self._idle_counts:
                self._append(IdleNote(EVENT_BYTES, now_s))
            self._is_idle, self._idle_counts = True, counts
            return
        note = self._notes.take(schedule)
        num_bytes = EVENT_BYTES + 96 * len(note.others) + sum([100 + len(pages) for _, _, pages in note.admitted])
        if not note.num_steps_on:
            num_bytes += DECODE_BYTES * len(note.decodes.requests)
        self._append(ScheduledNote(num_bytes, note, now_s, self._clock.now(), *counts))
        self._starts_s[schedule.step] = now_s
        left_out = self._spotter.take(note)
        self.num_stalls += len(left_out)
        if self.watch is not None:
            self.watch.scheduled(note, left_out)

    @_guarded
    def asked(self) -> None:
        """The loop wants the tokens of the oldest step in flight, and they may not be there yet."""
        if self._asked_s is None:
            self._asked_s = self._clock.now()

    @_guarded
    def completed(
        self, schedule: Schedule, bucket: StepShape, outputs: Sequence[TokenOutput], end_s: float, is_lost: bool = False
    ) -> None:
        """`Scheduler.complete` took in a step's tokens."""
        asked_s, self._asked_s = end_s if self._asked_s is None else self._asked_s, None
        ended, num_bytes = (), 0
        if self.scheduler.num_running + self.scheduler.num_waiting != len(self._live):
            ended, num_bytes = self._end_all(outputs)
        compiled: tuple[tuple[str, float], ...] = ()
        if len(self._compiled) != self._num_compiled:
            compiled = tuple([(each.name, each.seconds) for each in self._compiled[self._num_compiled :]])
            self._num_compiled = len(self._compiled)
        num_bytes += EVENT_BYTES
        note = CompletedNote(num_bytes, schedule.step, asked_s, end_s, bucket, ended, compiled, is_lost)
        self._append(note)
        start_s = self._starts_s.pop(schedule.step)
        if self.watch is not None:
            self.watch.completed(note, start_s)

    @_guarded
    def failed(self, schedule: Schedule, outputs: Sequence[TokenOutput], now_s: float) -> None:
        """`Scheduler.fail_step` gave a step up, and ended these."""
        self._asked_s = None
        self._starts_s.pop(schedule.step)
        self._notes.break_off()
        self._spotter.break_off()
        ended, num_bytes = self._end_all(outputs)
        note = FailedNote(EVENT_BYTES + num_bytes, schedule.step, now_s, ended)
        self._append(note)
        if self.watch is not None:
            self.watch.failed(note)

    # ---- what was noted

    def live(self, number: int) -> Request | None:
        """The request of this number, if it has not ended."""
        return self._live.get(number)

    def number(self, request_id: str) -> int | None:
        """Of a request that has not ended; its other samples have those after it. None: there is no such one."""
        number = self._numbers.get(request_id)
        return number if number in self._live else None

    @property
    def num_events(self) -> int:
        """Of all that ever were in the ring."""
        return self._num_dropped + len(self._events)

    def latest(self, num_events: int) -> Callable[[], Snapshot]:
        """At most so many events, to explain: requests have no digests. Returns: what makes the snapshot, in any thread. Raises: EngineError after a fault."""
        self._check()
        events = list(islice(reversed(self._events), num_events))
        num_before, clock_s = self.num_events - len(events), self._clock.now()
        ended = [note for _, note in takewhile(lambda each: each[0] >= num_before, reversed(self._ended))]
        live = list(self._live.items())

        def make() -> Snapshot:
            requests = [note._replace(digests=NO_DIGESTS) for note in ended]
            requests += [self._request_note(*each, NO_DIGESTS) for each in live]
            return Snapshot(requests, events[::-1], num_before, clock_s)

        return make

    def snapshot(self) -> Snapshot:
        """Everything in the ring. Raises: EngineError if a fault stopped the recording."""
        self._check()
        requests = [note for _, note in self._ended] + [self._request_note(*each) for each in self._live.items()]
        return Snapshot(requests, list(self._events), self._num_dropped, self._clock.now())

    def dump(self, path: str | Path) -> None:
        """Write what is in the ring to a file; its name ends in .gz: compressed. Raises: EngineError; ConfigError if the file can't be written."""
        from sarathi_jax.engine.flight_dump import dump  # here: an engine that writes no file needs no msgspec

        dump(self, Path(path), "asked for")

    def close(self) -> None:
        """Wait for files that are being written."""
        if self.watch is not None:
            self.watch.close()

    # ---- inside

    def _check(self) -> None:
        if self.fault is not None:
            raise EngineError(
                f"The flight recorder must run, got a fault of its own: {self.fault!r}: please report it."
            )

    def _append(self, note: Note) -> None:
        self._is_idle = False
        events = self._events
        events.append(note)
        self._num_bytes += note.num_bytes
        while len(events) > self._max_events or self._num_bytes > self._max_bytes:
            self._num_bytes -= events.popleft().num_bytes
            self._num_dropped += 1
            # Nothing in the ring is about a request that ended before it begins.
            while self._ended and self._ended[0][0] < self._num_dropped:
                note_of_ended = self._ended.popleft()[1]
                if self._numbers.get(note_of_ended.request_id) == note_of_ended.number:
                    del self._numbers[note_of_ended.request_id]

    def _end_all(self, outputs: Sequence[TokenOutput]) -> tuple[tuple[tuple[int, FinishReason], ...], int]:
        """Sum up requests that ended by the event that comes next. Returns: which and why, and bytes that this takes."""
        ended: list[tuple[int, FinishReason]] = []
        num_bytes = 0
        for output in outputs:
            if output.finish_reason is not None:
                ended.append((self._numbers[output.request.request_id], output.finish_reason))
                num_bytes += self._end(output.request)
        return tuple(ended), num_bytes

    def _end(self, request: Request) -> int:
        """Sum up a request that ended by the event that comes next. Returns: bytes that this takes."""
        number = self._numbers[request.request_id]
        note = self._request_note(number, self._live.pop(number))
        self._ended.append((self._num_dropped + len(self._events), note))
        self._notes.forget(number)
        return len(note.digests) * note.digests.itemsize

    def _request_note(self, number: int, request: Request, digests: "array[int] | None" = None) -> RequestNote:
        leader = request.samples[0] if request.samples else request
        if digests is None:
            digests = array("Q", [int.from_bytes(block.digest[:8]) for block in request.block_chain[1:]])
        return RequestNote(
            number,
            request.request_id,
            request.arrival_s,
            request.num_prompt_tokens,
            request.max_tokens,
            request.num_given_tokens - request.num_prompt_tokens,
            number - request.sample_index if request.sample_index else None,
            request.sample_index,
            leader.sampling.n,
            request.priority,
            request.cache_salt,
            request.slo_class,
            request.client,
            request.sampling.prompt_logprobs is not None,
            digests,
        )
