"""The loop: schedule, run, take in. Plain, or overlapped: the next step is scheduled and dispatched before this one's tokens are read.

In the overlapped loop a token that a step in flight samples is *pending* (`scheduling.request`): the device feeds it to the next step itself, and a request
that turns out to have ended has its extra row dropped. So both loops give the same tokens.
"""

import contextlib
import logging
from collections import deque
from dataclasses import dataclass

from sarathi_jax.clock import Clock
from sarathi_jax.engine.executor import Executor, StepHandle
from sarathi_jax.engine.records import StepRecord, record_step
from sarathi_jax.errors import EngineError
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.scheduler import Scheduler, TokenOutput

logger = logging.getLogger(__name__)

MAX_RECORDS = 65536
MAX_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A step that was dispatched and not read."""

    schedule: Schedule
    handle: StepHandle
    start_s: float


class StepLoop:
    """Runs steps of one scheduler on one executor. Not safe to share between threads.

    records: of the latest MAX_RECORDS steps, oldest first. completed_s: when the tokens of the last step came.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor, clock: Clock, *, is_overlapped: bool) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.clock = clock
        self.is_overlapped = is_overlapped
        self.records: deque[StepRecord] = deque(maxlen=MAX_RECORDS)
        self.completed_s = clock.now()
        self._in_flight: StepInFlight | None = None
        self._lost: StepInFlight | None = (
            None  # given up because the one before it failed: whatever comes of it is of no use
        )
        self._num_failures_in_a_row = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to run, and nothing to wait for."""
        return self._in_flight is None and not self.scheduler.has_unfinished

    def step(self) -> list[TokenOutput]:
        """Run one turn: dispatch a step, and take in what came of the one before (overlapped) or of this one (plain).

        Raises: EngineError if steps fail again and again, or unfinished requests can't run.
        """
        launched = self._launch()
        landing, self._in_flight = (self._in_flight, launched) if self.is_overlapped else (launched, None)
        if landing is not None:
            return self._land(landing)
        if launched is None and self.scheduler.has_unfinished:
            raise EngineError(
                f"Some request must be able to run, got none of {self.scheduler.num_waiting} waiting and {self.scheduler.num_running} running:"
                " this is a fault of the scheduler; please report it."
            )
        return []

    def close(self) -> None:
        """Wait for what is in flight, and release the executor: a process must not end under a running step."""
        if self._in_flight is not None:
            with contextlib.suppress(EngineError):
                self._in_flight.handle.result()
            self._in_flight = None
        self.executor.close()

    def _launch(self) -> StepInFlight | None:
        start_s = self.clock.now()
        schedule = self.scheduler.schedule(start_s)
        return None if schedule is None else StepInFlight(schedule, self.executor.submit(schedule), start_s)

    def _land(self, flight: StepInFlight) -> list[TokenOutput]:
        try:
            result = flight.handle.result()
        except EngineError as error:
            self._give_up(flight.schedule, error)
            return []
        self.completed_s = self.clock.now()
        if flight is self._lost:
            return self.scheduler.complete(flight.schedule, result, self.completed_s)
        self._num_failures_in_a_row = 0
        self.records.append(record_step(flight.schedule, flight.handle.bucket, flight.start_s, self.completed_s))
        return self.scheduler.complete(flight.schedule, result, self.completed_s)

    def _give_up(self, schedule: Schedule, error: EngineError) -> None:
        """A step failed and the KV cache is lost: all running requests start over, and keep the tokens they have. The step behind it is lost with it."""
        logger.error("%s", error)
        if not self.scheduler.fail_step(schedule):
            return
        self._lost = self._in_flight
        self._num_failures_in_a_row += 1
        if self._num_failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise EngineError(
                f"At most {MAX_FAILURES_IN_A_ROW - 1} steps may fail in a row, got one more: {error} Start the engine again."
            ) from error
