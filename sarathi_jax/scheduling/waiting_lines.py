"""Who waits to be admitted for the first time, by priority, client and class: whoever looks at the first of each line sees everybody that may be next, however long
another one's line is."""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from sarathi_jax.scheduling.request import Request, RequestState

type Lines = dict[str, deque[Request]]  # by class

MIN_SWEPT = 64  # priorities


class WaitingLines:
    """Lines of requests, each in the order of arrival.

    client_of: whose line a request stands in; by default all stand in the same ones.
    """

    def __init__(self, client_of: Callable[[Request], str] = lambda request: "") -> None:
        self._client_of = client_of
        self._lines: dict[int, dict[str, Lines]] = {}
        self._max_priorities = MIN_SWEPT

    @property
    def clients(self) -> Collection[str]:
        """Those who have somebody waiting, as far as `drop_ended` was called."""
        return dict.fromkeys(client for lines in self._lines.values() for client in lines)

    def clients_of(self, priority: int) -> Collection[str]:
        """Those who have somebody waiting with this priority, as far as anybody looked."""
        return self._lines.get(priority, {}).keys()

    def add(self, request: Request) -> None:
        """It was queued."""
        if len(self._lines) > self._max_priorities:
            # Rarely enough that it costs nothing, often enough that nothing is left of who has ended.
            self.drop_ended()
            self._max_priorities = max(2 * len(self._lines), MIN_SWEPT)
        priority, client = request.priority, self._client_of(request)
        self._drop_stale(priority, client)
        lines = self._lines.setdefault(priority, {}).setdefault(client, {})
        lines.setdefault(request.slo_class, deque()).append(request)

    def first(self, priority: int, client: str, count: int) -> list[Request]:
        """So many of each of a client's classes."""
        lines = self._lines.get(priority, {}).get(client, {})
        return [each for line in lines.values() for each in islice(filter(_is_fresh, line), count)]

    def admitted(self, requests: Iterable[Request]) -> None:
        """These wait no more."""
        for priority, client in {(request.priority, self._client_of(request)) for request in requests}:
            self._drop_stale(priority, client)

    def drop_ended(self) -> None:
        """Forget who has ended, so that nobody but `clients` has somebody waiting."""
        for priority, clients in list(self._lines.items()):
            for client in list(clients):
                self._drop_stale(priority, client)

    def _drop_stale(self, priority: int, client: str) -> None:
        clients = self._lines.get(priority, {})
        lines = clients.get(client, {})
        for name, line in list(lines.items()):
            while line and not _is_fresh(line[0]):
                line.popleft()
            if not line:
                del lines[name]
        if not lines:
            clients.pop(client, None)
        if not clients:
            self._lines.pop(priority, None)


def _is_fresh(request: Request) -> bool:
    return request.state is RequestState.WAITING and request.first_scheduled_s is None
