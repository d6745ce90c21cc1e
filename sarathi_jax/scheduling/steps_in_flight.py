"""Steps that were scheduled and have not completed, and those that were given up before they could. Knows nothing of queues or pages."""

from collections import deque
from collections.abc import Sequence, Set
from itertools import islice

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.step_rows import StepRows


class StepsInFlight:
    """Steps in the order in which they were scheduled. Says which requests have rows in them that stopped running (`Request.num_late_rows`)."""

    def __init__(self) -> None:
        self._steps: deque[tuple[Schedule, StepRows]] = deque()
        self._lost: set[int] = set()
        self._num_late_rows = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def requests(self) -> list[Sequence[Request]]:
        """Of each step."""
        return [rows.requests for _, rows in self._steps]

    def newest(self, count: int) -> Set[Request]:
        """Requests of so many of the newest steps."""
        steps = list(islice(reversed(self._steps), count))
        return set().union(*[rows.requests for _, rows in steps])

    def holds(self, request: Request) -> bool:
        """Whether a row of this one is in flight."""
        return any(request in rows.requests for _, rows in self._steps)

    def add(self, schedule: Schedule, rows: StepRows) -> None:
        """rows: the schedule's."""
        self._steps.append((schedule, rows))

    def stops(self, request: Request) -> None:
        """A request that runs is about to stop; its rows in flight are late from now on."""
        request.num_late_rows = sum([request in rows.requests for _, rows in self._steps])
        self._num_late_rows += request.num_late_rows

    def was_lost(self, schedule: Schedule) -> bool:
        """Whether the step was given up before; it is asked about once."""
        is_lost = schedule.step in self._lost
        self._lost.discard(schedule.step)
        return is_lost

    def oldest(self, schedule: Schedule) -> StepRows:
        """The rows of the step that completes now. Raises: AssertionError if it is another one's turn."""
        assert self._steps and self._steps[0][0] is schedule, (
            f"step {schedule.step} is not the oldest one in flight: results are taken once, in order"
        )
        return self._steps[0][1]

    def land(self) -> bool:
        """The oldest step has completed. Returns: whether it has rows of requests that had stopped running."""
        _, rows = self._steps.popleft()
        if not self._num_late_rows:
            return False
        late = [request for request in rows.requests if request.num_late_rows]
        self._num_late_rows -= len(late)
        for request in late:
            request.num_late_rows -= 1
        return bool(late)

    def give_up(self, failed: Schedule) -> list[Request]:
        """A step failed: it and all others are lost, with what they would have sampled. Returns: who was in them."""
        assert any(schedule is failed for schedule, _ in self._steps), f"step {failed.step} is not in flight"
        self._lost |= {schedule.step for schedule, _ in self._steps if schedule is not failed}
        lost = list(dict.fromkeys(request for _, rows in self._steps for request in rows.requests))
        for request in lost:
            request.forget_pending()
        self._steps.clear()
        self._num_late_rows = 0
        return lost
