"""Steps that were scheduled and have not completed, and those that were given up before they could. Knows nothing of queues or pages."""

from collections import deque
from collections.abc import Sequence, Set
from itertools import islice

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule


class StepsInFlight:
    """Steps in the order in which they were scheduled, each with the requests of its rows."""

    def __init__(self) -> None:
        self._steps: deque[tuple[Schedule, Sequence[Request]]] = deque()
        self._lost: set[int] = set()

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def requests(self) -> list[Sequence[Request]]:
        """Of each step."""
        return [requests for _, requests in self._steps]

    def newest(self, count: int) -> Set[Request]:
        """Requests of so many of the newest steps."""
        return {request for _, requests in islice(reversed(self._steps), count) for request in requests}

    def add(self, schedule: Schedule, requests: Sequence[Request]) -> None:
        self._steps.append((schedule, requests))

    def was_lost(self, schedule: Schedule) -> bool:
        """Whether the step was given up before; it is asked about once."""
        is_lost = schedule.step in self._lost
        self._lost.discard(schedule.step)
        return is_lost

    def land(self, schedule: Schedule) -> Sequence[Request]:
        """The oldest step has completed. Returns: its rows' requests."""
        assert self._steps and self._steps[0][0] is schedule, (
            f"step {schedule.step} is not the oldest one in flight: results are taken once, in order"
        )
        return self._steps.popleft()[1]

    def give_up(self, failed: Schedule) -> list[Request]:
        """A step failed: it and all others are lost, with what they would have sampled. Returns: who was in them."""
        assert any(schedule is failed for schedule, _ in self._steps), f"step {failed.step} is not in flight"
        for schedule, requests in self._steps:
            if schedule is not failed:
                self._lost.add(schedule.step)
            for request in requests:
                request.forget_pending()
        lost = dict.fromkeys(request for _, requests in self._steps for request in requests)
        self._steps.clear()
        return list(lost)
