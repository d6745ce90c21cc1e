"""Why a request's tokens came late, told while the engine goes on: when it ends, what the flight recorder holds of its life is copied; a thread of its own reads that.

Everything but `_work` is called by the engine's thread.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from queue import Empty, Queue, SimpleQueue
from threading import Thread
from typing import NamedTuple

from sarathi_jax.engine import explain
from sarathi_jax.engine.flight_dump import record_of
from sarathi_jax.engine.flight_notes import Snapshot
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.record_steps import read_run
from sarathi_jax.engine.request_story import tell_story
from sarathi_jax.errors import EngineError
from sarathi_jax.serve.messages import EXPLAIN_LIMIT_S, CauseShare, Explained, LateToken

logger = logging.getLogger(__name__)

MAX_EVENTS = 4096  # of a life, its last ones: two a step
NUM_EVENTS_BEFORE = 512  # an arrival: they say what is usual
MAX_GAPS = 20_000  # to know the usual one
MAX_LATE = 100
MAX_JOBS = 8
SWITCH_S = 1e-4  # after which this thread leaves the interpreter to the engine's, which wants it for each step; Python's own is 5 ms


class Followed(NamedTuple):
    """A request of the engine: samples first_sample, ... have the numbers first_number, ... in the recorder. num_events: there had been when it arrived."""

    recorder: FlightRecorder
    first_number: int
    first_sample: int
    num_samples: int
    num_events: int


class Job(NamedTuple):
    """What is to be explained of one of the front's requests, which waits until until_s; with what makes snapshots of its recorders."""

    number: int
    until_s: float
    parts: list[tuple[Followed, Callable[[], Snapshot]]]


class Explainer:
    """Follows requests that want to know. recorders: of all engines; None: that one has none."""

    def __init__(self, recorders: Sequence[FlightRecorder | None]) -> None:
        self._recorders = [recorder for recorder in recorders if recorder is not None]
        self._followed: dict[int, list[Followed | None]] = {}
        self._jobs = Queue[Job](MAX_JOBS)
        self._told = SimpleQueue[Explained]()
        self._num_under_way = 0
        self._thread: Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether there is something to `take`, or soon will be."""
        return self._num_under_way > 0

    def follow(self, number: int, request_id: str, num_samples: int, first_sample: int = 0) -> None:
        """A request was queued. number: the front's. request_id: the engine's, which may have several for one of the front's."""
        followed = None
        for recorder in self._recorders:
            first_number = recorder.number(request_id)
            if first_number is not None:
                followed = Followed(recorder, first_number, first_sample, num_samples, recorder.num_events)
        self._followed.setdefault(number, []).append(followed)

    def forget(self, number: int) -> None:
        """Nobody wants to know any more."""
        self._followed.pop(number, None)

    def ended(self, number: int) -> None:
        """A request has ended, with all samples: if it was followed, one of `take`'s is about it."""
        followed = self._followed.pop(number, None)
        if followed is None:
            return
        self._num_under_way += 1
        try:
            parts = [] if self._jobs.full() else [_copied(each) for each in followed]
        except EngineError:
            parts = []
        if not parts:
            self._told.put(Explained(number, None))
            return
        self._jobs.put_nowait(Job(number, time.perf_counter() + EXPLAIN_LIMIT_S, parts))
        if self._thread is None:
            sys.setswitchinterval(SWITCH_S)
            self._thread = Thread(target=self._work, name="explainer", daemon=True)
            self._thread.start()

    def take(self) -> list[Explained]:
        """What has been explained since the last time."""
        found: list[Explained] = []
        while self._num_under_way > len(found):
            try:
                found.append(self._told.get_nowait())
            except Empty:
                break
        self._num_under_way -= len(found)
        return found

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            late = None
            try:
                if time.perf_counter() < job.until_s:
                    late = [token for followed, make in job.parts for token in late_tokens(followed, make())]
            except Exception:
                logger.exception("late tokens could not be explained: this is a fault of the server; please report it")
            self._told.put(Explained(job.number, late))


def _copied(followed: Followed | None) -> tuple[Followed, Callable[[], Snapshot]]:
    """With what its recorder holds of its life. Raises: EngineError if there is nothing."""
    if followed is None:
        raise EngineError("A flight recorder must run to explain late tokens, got none: leave flight_recorder on.")
    recorder = followed.recorder
    num_events = recorder.num_events - followed.num_events + NUM_EVENTS_BEFORE
    return followed, recorder.latest(min(num_events, MAX_EVENTS))


def late_tokens(followed: Followed, snapshot: Snapshot) -> list[LateToken]:
    """Of all its samples. Raises: ConfigError if the record does not hold together."""
    record = record_of(followed.recorder, snapshot)
    run = read_run(record)
    limit_s = explain.usual_limit_s(run, MAX_GAPS)
    found: list[LateToken] = []
    for place in range(followed.num_samples):
        facts = record.requests[followed.first_number + place]
        for token in explain.late_tokens(run, tell_story(run, facts), limit_s, MAX_LATE):
            at_s = token.at_s - facts.arrival_s
            sample = followed.first_sample + place
            found.append(LateToken(sample, token.number, at_s, token.gap_s, by_kind(token.causes)))
    return found


def by_kind(causes: Sequence[explain.Cause]) -> list[CauseShare]:
    """One a kind, the largest first: who the requests were is nobody's business."""
    groups: dict[str, list[explain.Cause]] = {}
    for cause in causes:
        groups.setdefault(cause.kind, []).append(cause)
    shares = [
        CauseShare(
            kind,
            sum(cause.seconds for cause in each),
            sum(cause.num_tokens for cause in each),
            len({request for cause in each for request in cause.requests}),
        )
        for kind, each in groups.items()
    ]
    return sorted(shares, key=lambda share: -share.seconds)
