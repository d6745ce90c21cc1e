"""The loop: schedule, run, take in. Plain, or overlapped: the next step is scheduled and dispatched before this one's tokens are read. With a pipeline,
a step of each stage is under way besides.

In the overlapped loop a token that a step in flight samples is *pending* (`scheduling.request`): the device feeds it to the next step itself, and a request
that turns out to have ended has its extra row dropped. So both loops give the same tokens. While a request runs whose next token depends, on the host, on the one
before it (`Scheduler.is_constrained`), steps are read before the next one is planned, as in the plain loop: nobody is left out of a step for it.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sarathi_jax.clock import Clock
from sarathi_jax.engine.executor import Executor, StepHandle
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.records import StepRecord, record_step
from sarathi_jax.errors import EngineError, GroupError
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.scheduler import Scheduler, TokenOutput

logger = logging.getLogger(__name__)

MAX_RECORDS = 65536
MAX_STEPS_WITHOUT_SENSE = 3  # in a row


class StepInFlight(NamedTuple):
    """A step that was dispatched and not read."""

    schedule: Schedule
    handle: StepHandle
    start_s: float


class StepLoop:
    """Runs steps of one scheduler on one executor. Not safe to share between threads.

    records: of the latest max_records steps, oldest first; None: of all. completed_s: when the tokens of the last step came. replica: this engine's number among several.
    recorder: is told of every step; None: nobody is.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        *,
        is_overlapped: bool,
        replica: int = 0,
        recorder: FlightRecorder | None = None,
        max_records: int | None = MAX_RECORDS,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.clock = clock
        self.is_overlapped = is_overlapped
        self.replica = replica
        self.recorder = recorder
        self.records: deque[StepRecord] = deque(maxlen=max_records)
        self.completed_s = clock.now()
        self._in_flight: deque[StepInFlight] = deque()
        self._lost: set[int] = set()  # steps given up because one before them failed: what comes of them is of no use
        self._num_without_sense = 0
        self._end: GroupError | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to run, and nothing to wait for."""
        return not self._in_flight and not self.scheduler.has_unfinished

    @property
    def num_in_flight(self) -> int:
        """Steps that were dispatched and not read."""
        return len(self._in_flight)

    @property
    def is_full(self) -> bool:
        """Whether as many steps are under way as the loop allows, so that the oldest one has to be read next."""
        if self.scheduler.suspects.is_hunting:
            return bool(self._in_flight)  # so that it is known who was in a step that fails
        # A step of a pipeline is done after as many ticks as there are stages: that many steps are under way at a time.
        num_ahead = self.is_overlapped and not self.scheduler.is_constrained
        return len(self._in_flight) > self.scheduler.limits.num_microbatches - 1 + num_ahead

    def step(self, *, does_wait: bool = True, does_launch: bool = True) -> Sequence[TokenOutput]:
        """Run one turn: dispatch a step, and take in what came of the oldest one, once there are as many under way as the loop allows.

        does_wait: whether to wait for that one; if not, a turn in which it is not done yet brings nothing.
        does_launch: whether to dispatch; if not, the turn only takes in what came of the oldest one.
        Raises: EngineError if steps fail again and again, or unfinished requests can't run. GroupError, now and ever after, if a process is lost.
        """
        if self._end is not None:
            raise self._end
        try:
            return self._turn(does_wait=does_wait, does_launch=does_launch)
        except GroupError as error:
            self._end = error
            raise

    def _turn(self, *, does_wait: bool, does_launch: bool) -> Sequence[TokenOutput]:
        launched = self._launch() if does_launch and not self.is_full else None
        if launched is not None:
            self._in_flight.append(launched)
        if self._in_flight and (launched is None or self.is_full):
            if self.recorder is not None:
                self.recorder.asked()
            is_ready = does_wait or self._in_flight[0].handle.is_ready()
            return self._land(self._in_flight.popleft()) if is_ready else []
        if does_launch and launched is None and self.scheduler.has_unfinished:
            raise EngineError(
                f"Some request must be able to run, got none of {self.scheduler.num_waiting} waiting and {self.scheduler.num_running} running:"
                " this is a fault of the scheduler; please report it."
            )
        return []

    def close(self) -> None:
        """Wait for what is in flight, and release the executor: a process must not end under a running step."""
        for flight in self._in_flight:
            with contextlib.suppress(EngineError):
                flight.handle.result()
        self._in_flight.clear()
        self.executor.close()

    def _launch(self) -> StepInFlight | None:
        start_s = self.clock.now()
        schedule = self.scheduler.schedule(start_s)
        flight = None if schedule is None else StepInFlight(schedule, self.executor.submit(schedule), start_s)
        if self.recorder is not None:
            self.recorder.scheduled(schedule, start_s)  # while the device runs the step
        return flight

    def _land(self, flight: StepInFlight) -> Sequence[TokenOutput]:
        is_lost = flight.schedule.step in self._lost
        self._lost.discard(flight.schedule.step)
        try:
            result = flight.handle.result()
        except GroupError:
            raise
        except EngineError as error:
            return self._give_up(flight.schedule, error)
        if not is_lost and self._is_failure(flight.schedule, result.is_finite):
            return self._give_up(
                flight.schedule, EngineError(f"Step {flight.schedule.step} must have finite logits, got none.")
            )
        self.completed_s = self.clock.now()
        bucket, start_s = flight.handle.bucket, flight.start_s
        if not is_lost:
            self.records.append(record_step(flight.schedule, bucket, start_s, self.completed_s, self.replica))
        outputs = self.scheduler.complete(flight.schedule, result, self.completed_s)
        if self.recorder is not None:
            self.recorder.completed(flight.schedule, bucket, outputs, self.completed_s, is_lost)
        return outputs

    def _is_failure(self, schedule: Schedule, is_finite: list[bool] | None) -> bool:
        """Whether a step in which not a single row's logits are finite is to be run again. If the next one is like it, its requests end, each for itself.

        Raises: EngineError if that happens to step after step.
        """
        if is_finite is None or any(is_finite):
            self._num_without_sense = 0
            return False
        if len(is_finite) == 1:
            return False
        self._num_without_sense += 1
        if self._num_without_sense >= MAX_STEPS_WITHOUT_SENSE:
            raise EngineError(
                f"Some row of {MAX_STEPS_WITHOUT_SENSE} steps must have finite logits, got none up to step {schedule.step}: start the engine again."
            )
        return self._num_without_sense == 1

    def _give_up(self, schedule: Schedule, error: EngineError) -> Sequence[TokenOutput]:
        """A step failed and the KV cache is lost: all running requests start over, and keep the tokens they have. Steps behind it are lost with it.

        Returns: requests that end for it.
        """
        now_s = self.clock.now()
        outputs = self.scheduler.fail_step(schedule, now_s)
        if self.recorder is not None:
            self.recorder.failed(schedule, outputs or (), now_s)
        if outputs is None:
            return []
        logger.error("%s", error)
        self.completed_s = now_s
        self._lost = {flight.schedule.step for flight in self._in_flight}
        if self.scheduler.suspects.is_hopeless:
            raise EngineError(
                f"Steps must run once those that make them fail are left out, got another failure, whoever was in them: {error} Start the engine again."
            ) from error
        return outputs
