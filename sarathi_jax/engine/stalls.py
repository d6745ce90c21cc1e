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


def stalls_by_request(schedules: Iterable[Schedule]) -> Counter[str]:
    """For each request that was left out, the steps that did so while it was a running decode.

    That it is from the step that samples its first token to its last row, but for the time that it is preempted. Not for pipelines, where a request is in every
    so many steps alone.

    Args:
      schedules: of all steps of a run, in their order.
    """
    stalls, last_sampled = Counter[str](), dict[str, int]()
    for index, schedule in enumerate(schedules):
        for request_id in schedule.preempted_request_ids:
            last_sampled.pop(request_id, None)
        for row in schedule.rows:
            num_left_out = index - last_sampled.get(row.request_id, index - 1) - 1
            if num_left_out:
                stalls[row.request_id] += num_left_out
            if row.does_sample:
                last_sampled[row.request_id] = index
    return stalls


def count_stalls(schedules: Iterable[Schedule]) -> int:
    """Summed over requests."""
    return stalls_by_request(schedules).total()
