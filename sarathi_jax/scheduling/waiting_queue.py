"""Requests that wait, in queue order. Knows nothing of what runs, nor of why somebody waits."""

from bisect import insort
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from sarathi_jax.scheduling.request import Request


class WaitingQueue:
    """A queue for each priority that somebody has who waits, the lowest number first; within one, those who were put first are in front.

    Nothing is ever sorted: a step that looks at the first few takes as long as if all had one priority.
    """

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self._priorities: list[int] = []  # ascending
        self._queues: dict[int, OrderedDict[str, Request]] = {}
        for request in requests:
            self.put_last(request)

    def __iter__(self) -> Iterator[Request]:
        if len(self._priorities) == 1:
            return iter(self._queues[self._priorities[0]].values())
        return chain.from_iterable(queue for _, queue in self.by_priority())

    def by_priority(self) -> Iterator[tuple[int, Collection[Request]]]:
        """Each priority, and who has it; nobody has none."""
        return ((priority, self._queues[priority].values()) for priority in self._priorities)

    def put_last(self, request: Request) -> None:
        """To the end of its priority's queue."""
        self._queue_of(request)[request.request_id] = request

    def put_first(self, request: Request) -> None:
        """To the front of its priority's queue, from wherever it is."""
        queue = self._queue_of(request)
        queue[request.request_id] = request
        queue.move_to_end(request.request_id, last=False)

    def discard(self, request: Request) -> None:
        """It waits no more; if it did not, nothing changes."""
        queue = self._queues.get(request.priority)
        if queue is not None and queue.pop(request.request_id, None) is not None and not queue:
            del self._queues[request.priority]
            self._priorities.remove(request.priority)

    def _queue_of(self, request: Request) -> OrderedDict[str, Request]:
        queue = self._queues.get(request.priority)
        if queue is None:
            queue = self._queues[request.priority] = OrderedDict()
            insort(self._priorities, request.priority)
        return queue
