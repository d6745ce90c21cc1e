"""Watches steps for what should not happen, and has the flight recorder's ring written to a folder when it does.

A step that takes several times what steps of its bucket take; a compile while requests wait; a failed step; a decode that runs and is left out of a step. At most
one file a minute and `MAX_FILES` in all, written beside the loop; what goes wrong with one is logged and nothing more.
"""

import logging
import threading
from bisect import insort
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from sarathi_jax.clock import Clock
from sarathi_jax.engine.flight_recorder import CompletedNote, FailedNote, FlightRecorder, Snapshot
from sarathi_jax.engine.step_notes import StepNote
from sarathi_jax.scheduling.request import RequestState

logger = logging.getLogger(__name__)

SLOW_FACTOR = 5.0  # times the median of its bucket
MIN_SLOW_S = 0.02  # and so much more than it
WINDOW, MIN_STEPS = 64, 16
MIN_INTERVAL_S = 60.0
MAX_FILES = 32


class TypicalTime:
    """The median of the last WINDOW values."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        self._latest.append(seconds)
        insort(self._sorted, seconds)
        if len(self._latest) > WINDOW:
            self._sorted.remove(self._latest.popleft())

    @property
    def median(self) -> float | None:
        """None until there are MIN_STEPS."""
        return self._sorted[len(self._sorted) // 2] if len(self._sorted) >= MIN_STEPS else None


class FlightWatch:
    """A `Watch` over one recorder.

    folder: where files go; made if it is not there. clock: the engine's.
    """

    def __init__(self, recorder: FlightRecorder, clock: Clock, folder: Path) -> None:
        self._recorder = recorder
        self._clock = clock
        self._folder = folder
        self._typical: dict[str, TypicalTime] = {}
        self._last_end_s = float("-inf")
        self._last_dump_s = float("-inf")
        self._num_files = 0
        self._decoding: set[int] = set()
        self._last: StepNote | None = None
        self._writer: threading.Thread | None = None

    def scheduled(self, note: StepNote) -> None:
        """Look for decodes that were left out, where a step does not just go on with those before it."""
        last, self._last = self._last, note
        if last is not None and last.decodes is note.decodes and not last.others:
            return
        samples = {*note.decodes.requests, *(request for _, request, _, _, does_sample in note.others if does_sample)}
        left_out = [number for number in self._decoding - samples if self._could_run(number)]
        for number in left_out:
            request = self._recorder.live(number)
            self._report("stall", f"{request.request_id if request else number} was left out of step {note.step}")
        self._decoding = samples.union(left_out)

    def completed(self, note: CompletedNote, start_s: float) -> None:
        """Compare a step's time with what steps of its bucket take."""
        seconds = note.end_s - max(start_s, self._last_end_s)
        self._last_end_s = note.end_s
        if note.is_lost:
            return
        typical = self._typical.setdefault(note.bucket.name, TypicalTime())
        median = typical.median
        typical.add(seconds)
        if note.compiled:
            names = ", ".join(name for name, _ in note.compiled)
            self._report("compile", f"{names} was compiled while requests waited")
        elif median is not None and seconds > max(SLOW_FACTOR * median, median + MIN_SLOW_S):
            said = f"step {note.step} took {seconds:.3f} s, and {median:.3f} s is usual for {note.bucket.name}"
            self._report("slow-step", said)

    def failed(self, note: FailedNote) -> None:
        """A step failed: that is always worth a file."""
        self._last = None
        self._last_end_s = note.now_s
        self._report("failed-step", f"step {note.step} failed")

    def close(self) -> None:
        """Wait for the file that is being written."""
        if self._writer is not None:
            self._writer.join()

    def _could_run(self, number: int) -> bool:
        """Whether a request that no step holds any more still decodes, and was not left out for a reason of its own."""
        request = self._recorder.live(number)
        if request is None or request.state is not RequestState.RUNNING or request.is_prefilling:
            return False
        scheduler = self._recorder.scheduler
        is_under_way = scheduler.limits.num_microbatches > 1 and scheduler.is_in_flight(request)
        return request.num_remaining_tokens > 0 and not is_under_way

    def _report(self, kind: str, said: str) -> None:
        """Have a file written, unless there was one a moment ago, or is one on its way."""
        now_s = self._clock.now()
        is_writing = self._writer is not None and self._writer.is_alive()
        if now_s - self._last_dump_s < MIN_INTERVAL_S or self._num_files >= MAX_FILES or is_writing:
            return
        self._last_dump_s = now_s
        when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = self._folder / f"{when}-{kind}-replica{self._recorder.replica}-{self._num_files}.jsonl.gz"
        self._num_files += 1
        snapshot = self._recorder.snapshot()
        logger.warning("%s; the flight record goes to %s", said, path)
        self._writer = threading.Thread(target=self._write, args=(snapshot, path, f"{kind}: {said}"), daemon=False)
        self._writer.start()

    def _write(self, snapshot: Snapshot, path: Path, reason: str) -> None:
        try:
            from sarathi_jax.engine.flight_dump import write_snapshot  # here: only who writes files needs msgspec

            self._folder.mkdir(parents=True, exist_ok=True)
            write_snapshot(self._recorder, snapshot, path, reason, is_beside_loop=True)
        except Exception:
            logger.exception("the flight record %s could not be written", path)
