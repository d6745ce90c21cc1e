"""Stalls, counted: which running decodes a step left out (docs/metrics.md). From the schedules of a run, which an executor of its own kind keeps."""

from collections import Counter
from collections.abc import Iterable

from sarathi_jax.engine.executor import Executor, StepHandle
from sarathi_jax.scheduling.schedule import Schedule


class ScheduleKeeper:
    """An executor that keeps the schedules it was given, and has another one run them."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.schedules: list[Schedule] = []

    def submit(self, schedule: Schedule) -> StepHandle:
        self.schedules.append(schedule)
        return self.executor.submit(schedule)

    def close(self) -> None:
        self.executor.close()


class StallCounter:
    """Counts them as schedules come, those of all steps of a run, in their order.

    A request is a running decode from the step that samples its first token to its last row, but for the time that it is preempted.

    num_stages: of the engine's pipeline, where a request has a row in every so many steps at most: those that it can't have are no stalls.
    by_request: for each that was left out, the steps that did so.
    """

    def __init__(self, num_stages: int = 1) -> None:
        self.by_request = Counter[str]()
        self._num_stages = num_stages
        self._num_steps = 0
        self._last_sampled: dict[str, int] = {}

    def take(self, schedule: Schedule) -> None:
        index, last_sampled, num_stages = self._num_steps, self._last_sampled, self._num_stages
        self._num_steps += 1
        for request_id in schedule.preempted_request_ids:
            last_sampled.pop(request_id, None)
        for row in schedule.rows:
            num_left_out = index - last_sampled.get(row.request_id, index) - num_stages
            if num_left_out > 0:
                self.by_request[row.request_id] += num_left_out
            if row.does_sample:
                last_sampled[row.request_id] = index


def stalls_by_request(schedules: Iterable[Schedule], num_stages: int = 1) -> Counter[str]:
    """For each request that was left out, the steps that did so while it was a running decode.

    schedules: of all steps of a run, in their order.
    """
    counter = StallCounter(num_stages)
    for schedule in schedules:
        counter.take(schedule)
    return counter.by_request


def count_stalls(schedules: Iterable[Schedule]) -> int:
    """Summed over requests."""
    return stalls_by_request(schedules).total()
