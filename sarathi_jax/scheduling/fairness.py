"""Fair shares among clients: virtual token counters (Sheng et al., arXiv 2401.00588). Whoever was served least comes first, so nobody is held up by another one's flood."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from sarathi_jax.scheduling.request import Request, RequestState
from sarathi_jax.scheduling.schedule import Schedule

# The paper's: a token of an output takes more of a device than one of a prompt.
PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
MAX_IDLE_CLIENTS = (
    4096  # remembered at most, about: those of whom nothing is to be remembered any more are forgotten beyond
)


class ClientShares:
    """What each client was served, in weighted tokens, and what it has waiting.

    A client that comes back is lifted to the least of those that wait, or if nobody waits to the one that last left the queue: so idleness earns nothing, and
    two clients that wait all the time are served alike but for what one request can take (theorem 4.4 there).
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._queues: dict[str, deque[Request]] = {}
        self._last_admitted: str | None = None
        self._floor = 0.0

    def served(self, client: str) -> float:
        return self._served.get(client, self._floor)

    def waiting(self, count: int) -> list[Request]:
        """So many requests that wait to be admitted for the first time, of those first who were served least, each one's in the order of arrival."""
        clients = sorted(self._queues, key=self.served)
        fresh = (request for client in clients for request in self._queues[client] if _is_fresh(request))
        return list(islice(fresh, count))

    def arrived(self, request: Request) -> None:
        """A request was queued."""
        self._drop_stale(list(self._queues))
        client = request.client
        if client not in self._queues:
            # What a client is lifted to never falls, so nothing is lost of one that was served less than that and is forgotten.
            waiting = self._queues or ([] if self._last_admitted is None else [self._last_admitted])
            self._floor = max(self._floor, min(map(self.served, waiting), default=0.0))
            self._forget_idle()
            self._served[client] = max(self.served(client), self._floor)
            self._queues[client] = deque()
        self._queues[client].append(request)

    def scheduled(self, schedule: Schedule, requests: Sequence[Request]) -> None:
        """A step is to be run. requests: of its rows, in their order."""
        served = self._served
        for request, row in zip(requests, schedule.rows, strict=True):
            client = request.client
            is_output = row.num_tokens == 1 and row.num_output_tokens > 0
            served[client] = self.served(client) + (OUTPUT_WEIGHT if is_output else PROMPT_WEIGHT) * row.num_tokens
            if row.is_first:
                self._last_admitted = client
                self._drop_stale([client])

    def _drop_stale(self, clients: Sequence[str]) -> None:
        """Whoever was admitted, or has ended, waits no more."""
        for client in clients:
            queue = self._queues.get(client)
            while queue and not _is_fresh(queue[0]):
                queue.popleft()
            if queue is not None and not queue:
                del self._queues[client]

    def _forget_idle(self) -> None:
        if len(self._served) > MAX_IDLE_CLIENTS + 2 * len(self._queues):
            self._served = dict(self._remembered())

    def _remembered(self) -> Iterator[tuple[str, float]]:
        for client, served in self._served.items():
            if served > self._floor or client in self._queues:
                yield client, served


def _is_fresh(request: Request) -> bool:
    return request.state is RequestState.WAITING and request.first_scheduled_s is None
