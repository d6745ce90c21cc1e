"""Runs schedules on a virtual clock: the cost model says what each stage takes, a pipeline when it is done. No tokens are computed; outputs are what the
workload says they are."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sarathi_jax.clock import VirtualClock
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult
from sarathi_jax.simulation.hardware import HostCost
from sarathi_jax.simulation.pipelines import Passage, Pipeline
from sarathi_jax.simulation.step_work import StepWork, scheduled_work

StagePrices = Callable[[StepWork], Sequence[float]]
TokenOf = Callable[[ScheduledRow], int]
Observer = Callable[[Schedule, Passage], None]


@dataclass(frozen=True, slots=True)
class SimulatedShape:
    """What a step was padded to: simulated steps are as large as they are."""

    num_tokens: int
    num_rows: int
    name: str = "simulated"


simulated_shape = lru_cache(maxsize=4096)(SimulatedShape)  # of every step: few are different


class SimulatedExecutor:
    """An `Executor` without a device.

    Args:
      clock: moved on by whoever waits for a step.
      stage_prices: seconds that each stage takes for a step.
      host: what the engine's host code takes before a step can start; one step after the other.
      pipeline: of as many stages as there are prices.
      token_of: the token that a row samples; None: 0 for all.
      observer: is shown each step and its way through the pipeline, which goes on as the clock does.
    """

    def __init__(
        self,
        clock: VirtualClock,
        stage_prices: StagePrices,
        host: HostCost,
        pipeline: Pipeline,
        *,
        token_of: TokenOf | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.clock = clock
        self.pipeline = pipeline
        self._stage_prices = stage_prices
        self._host = host
        self._token_of = token_of
        self._observer = observer
        self._in_flight: deque[Passage] = deque()
        self._host_free_s = 0.0

    @property
    def oldest_done_s(self) -> float | None:
        """When the oldest step that nobody has read is done; None if there is none."""
        return self.pipeline.done_s(self._in_flight[0]) if self._in_flight else None

    def submit(self, schedule: Schedule) -> "SimulatedHandle":
        start_s = max(self.clock.now(), self._host_free_s)
        self._host_free_s = start_s + self._host.seconds(len(schedule.rows))
        passage = self.pipeline.enter(self._host_free_s, self._stage_prices(scheduled_work(schedule)))
        self._in_flight.append(passage)
        if self._observer is not None:
            self._observer(schedule, passage)
        return SimulatedHandle(self, schedule, passage)

    def read(self, schedule: Schedule, passage: Passage) -> StepResult:
        """Move the clock to a step's end, if it is not there yet."""
        oldest = self._in_flight.popleft()
        assert oldest is passage, "steps are read in their order"
        self.clock.advance(max(self.pipeline.done_s(passage) - self.clock.now(), 0.0))
        token_of = self._token_of
        if token_of is None:
            return StepResult([0] * len(schedule.rows), are_ids_known=True)
        token_ids = [token_of(row) if row.does_sample else 0 for row in schedule.rows]
        return StepResult(token_ids, are_ids_known=True)

    def close(self) -> None:
        """Nothing is held."""


class SimulatedHandle:
    """A step in flight."""

    __slots__ = ("_executor", "_passage", "_schedule")

    def __init__(self, executor: SimulatedExecutor, schedule: Schedule, passage: Passage) -> None:
        self._executor = executor
        self._schedule = schedule
        self._passage = passage

    @property
    def bucket(self) -> SimulatedShape:
        return simulated_shape(self._schedule.num_tokens, len(self._schedule.rows))

    def is_ready(self) -> bool:
        return self._executor.pipeline.done_s(self._passage) <= self._executor.clock.now()

    def result(self) -> StepResult:
        return self._executor.read(self._schedule, self._passage)
