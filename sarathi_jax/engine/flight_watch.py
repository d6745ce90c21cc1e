"""Watches steps for what should not happen, and has the flight recorder's ring written to a folder when it does.

A step that takes several times what steps of its bucket take; a compile while requests wait; a failed step; a decode that runs and is left out of a step. At most
one file a minute and `MAX_FILES` in all, written beside the loop; what goes wrong with one is logged and nothing more.
"""

import logging
import threading
from bisect import insort
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sarathi_jax.clock import Clock
from sarathi_jax.engine.flight_notes import CompletedNote, FailedNote, Snapshot
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.step_notes import StepNote

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
        self._writer: threading.Thread | None = None

    def scheduled(self, note: StepNote, left_out: Sequence[int]) -> None:
        """Decodes that were left out are worth a file."""
        for number in left_out:
            request = self._recorder.live(number)
            self._report("stall", f"{request.request_id if request else number} was left out of step {note.step}")

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
        self._last_end_s = note.now_s
        self._report("failed-step", f"step {note.step} failed")

    def close(self) -> None:
        """Wait for the file that is being written."""
        if self._writer is not None:
            self._writer.join()

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
