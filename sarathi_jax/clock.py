"""Where time comes from. Everything below the engine is handed a `Clock` and reads no other: a simulation is the same code under another one."""

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in seconds; only differences between its readings mean anything."""

    def now(self) -> float: ...


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.perf_counter()


class VirtualClock:
    """Stands still until it is moved: what a simulator and tests run under."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def advance(self, duration_s: float) -> None:
        """Move forward. Raises: ValueError if `duration_s` is negative or not a number: time never runs backwards."""
        if not duration_s >= 0.0:
            raise ValueError(f"duration_s must be >= 0, got {duration_s!r}: a clock only moves forward.")
        self._now_s += duration_s
