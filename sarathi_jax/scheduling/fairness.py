"""Fair shares among clients: virtual token counters (Sheng et al., arXiv 2401.00588). Whoever was served least comes first, so nobody is held up by another one's flood."""

from collections.abc import Iterable, Sequence

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule

# The paper's: a token of an output takes more of a device than one of a prompt.
PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
MAX_IDLE_CLIENTS = 4096  # of whom nothing has to be remembered, and are


class ClientShares:
    """What each client was served, in weighted tokens.

    A client that comes back is lifted to the least of those that wait, or if nobody waits to the one that last left the queue: so idleness earns nothing, and
    two clients that wait all the time are served alike but for what one request can take (they prove how much).
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._floor = 0.0
        self._last_admitted: str | None = None

    def served(self, client: str) -> float:
        return self._served.get(client, self._floor)

    def returned(self, client: str, waiting: Iterable[str]) -> None:
        """A client that had nothing waiting queues a request. waiting: the clients that have."""
        others = list(waiting)
        if not others and self._last_admitted is not None:
            others = [self._last_admitted]
        # What one is lifted to never falls: nothing is lost with a client that was served less and is forgotten.
        self._floor = max(self._floor, min(map(self.served, others), default=0.0))
        if len(self._served) > MAX_IDLE_CLIENTS + 2 * len(others):
            self._served = {name: served for name, served in self._served.items() if served > self._floor}
        self._served[client] = max(self.served(client), self._floor)

    def scheduled(self, schedule: Schedule, requests: Sequence[Request]) -> None:
        """A step is to be run. requests: of its rows, in their order."""
        served = self._served
        for request, row in zip(requests, schedule.rows, strict=True):
            client = request.client
            is_output = row.num_tokens == 1 and row.num_output_tokens > 0
            served[client] = self.served(client) + (OUTPUT_WEIGHT if is_output else PROMPT_WEIGHT) * row.num_tokens
            if row.is_first:
                self._last_admitted = client
