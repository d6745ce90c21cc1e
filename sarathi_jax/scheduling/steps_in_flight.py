"""Steps that were scheduled and have not completed, and those that were given up before they could. Knows nothing of queues or pages."""

from collections import deque
from collections.abc import Sequence, Set
from itertools import islice
from typing import NamedTuple

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.step_rows import StepRows


class Step(NamedTuple):
    """A step in flight.

    requests, crossings: as in `Advance`.
    """

    schedule: Schedule
    rows: StepRows
    requests: Sequence[Request]
    crossings: Sequence[int]


class StepsInFlight:
    """Steps in the order in which they were scheduled. Says which requests have rows in them that stopped running (`Request.num_late_rows`)."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()
        self._lost: set[int] = set()
        self._num_late_rows = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def requests(self) -> list[Sequence[Request]]:
        """Of each step."""
        return [step.requests for step in self._steps]

    def newest(self, count: int) -> Set[Request]:
        """Requests of so many of the newest steps."""
        steps = list(islice(reversed(self._steps), count))
        return set().union(*[step.requests for step in steps])

    def holds(self, request: Request) -> bool:
        """Whether a row of this one is in flight."""
        return any(request in step.requests for step in self._steps)

    def add(self, step: Step) -> None:
        self._steps.append(step)

    def stops(self, request: Request) -> None:
        """A request that runs is about to stop; its rows in flight are late from now on."""
        request.num_late_rows = sum([request in step.requests for step in self._steps])
        self._num_late_rows += request.num_late_rows

    def was_lost(self, schedule: Schedule) -> bool:
        """Whether the step was given up before; it is asked about once."""
        is_lost = schedule.step in self._lost
        self._lost.discard(schedule.step)
        return is_lost

    def oldest(self, schedule: Schedule) -> Step:
        """The step that completes now. Raises: AssertionError if it is another one's turn."""
        assert self._steps and self._steps[0].schedule is schedule, (
            f"step {schedule.step} is not the oldest one in flight: results are taken once, in order"
        )
        return self._steps[0]

    def land(self) -> None:
        """The oldest step has completed."""
        step = self._steps.popleft()
        if self._num_late_rows:
            late = [request for request in step.requests if request.num_late_rows]
            self._num_late_rows -= len(late)
            for request in late:
                request.num_late_rows -= 1

    def give_up(self, failed: Schedule) -> list[Request]:
        """A step failed: it and all others are lost, with what they would have sampled. Returns: who was in them."""
        assert any(step.schedule is failed for step in self._steps), f"step {failed.step} is not in flight"
        self._lost |= {step.schedule.step for step in self._steps if step.schedule is not failed}
        lost = list(dict.fromkeys(request for step in self._steps for request in step.requests))
        for request in lost:
            request.forget_pending()
        self._steps.clear()
        self._num_late_rows = 0
        return lost
