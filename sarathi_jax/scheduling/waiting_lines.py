"""Who waits to be admitted for the first time, by client and class: whoever looks at the first of each line sees everybody that may be next, however long another
one's line is."""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from sarathi_jax.scheduling.request import Request, RequestState


class WaitingLines:
    """Lines of requests, each in the order of arrival.

    client_of: whose line a request stands in; by default all stand in the same ones.
    """

    def __init__(self, client_of: Callable[[Request], str] = lambda request: "") -> None:
        self._client_of = client_of
        self._lines: dict[str, dict[str, deque[Request]]] = {}

    @property
    def clients(self) -> Collection[str]:
        """Those who have somebody waiting, as far as `drop_ended` was called."""
        return self._lines.keys()

    def add(self, request: Request) -> None:
        """It was queued."""
        lines = self._lines.setdefault(self._client_of(request), {})
        lines.setdefault(request.slo_class, deque()).append(request)

    def first(self, client: str, count: int) -> list[Request]:
        """So many of each of a client's classes."""
        lines = self._lines.get(client, {})
        return [each for line in lines.values() for each in islice(filter(_is_fresh, line), count)]

    def admitted(self, requests: Iterable[Request]) -> None:
        """These wait no more."""
        for client in {self._client_of(request) for request in requests}:
            self._drop_stale(client)

    def drop_ended(self) -> None:
        """Forget who has ended, so that nobody but `clients` has somebody waiting."""
        for client in list(self._lines):
            self._drop_stale(client)

    def _drop_stale(self, client: str) -> None:
        lines = self._lines.get(client, {})
        for name, line in list(lines.items()):
            while line and not _is_fresh(line[0]):
                line.popleft()
            if not line:
                del lines[name]
        if not lines:
            self._lines.pop(client, None)


def _is_fresh(request: Request) -> bool:
    return request.state is RequestState.WAITING and request.first_scheduled_s is None
