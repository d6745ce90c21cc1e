"""Who has not been heard of for too long. And threads that do one thing again and again, for beats and for watching over them."""

import threading
import time
from collections.abc import Callable, Iterable

WATCH_S = 0.1
# A watch that comes this late was itself held up, and others' messages with it.
OVERSLEPT_S = 1.0


class Silence:
    """When each process was heard of last. Safe to share between threads.

    patience_s: how long one may be silent.
    """

    def __init__(
        self, process_ids: Iterable[int], patience_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.patience_s = patience_s
        self._now = now
        self._heard_s = dict.fromkeys(process_ids, now())
        self._watched_s = now()

    def hear(self, process_id: int) -> None:
        self._heard_s[process_id] = self._now()

    def shorten(self, patience_s: float) -> None:
        """From now on one may be silent this long."""
        self._heard_s = dict.fromkeys(self._heard_s, self._now())
        self.patience_s = patience_s

    def overdue(self) -> list[tuple[int, float]]:
        """(process, seconds) of those that are silent for too long. To be asked every WATCH_S: who asks late was asleep, and begins anew."""
        now_s, watched_s = self._now(), self._watched_s
        self._watched_s = now_s
        if now_s - watched_s > OVERSLEPT_S:
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        silences = [(process_id, now_s - heard_s) for process_id, heard_s in self._heard_s.items()]
        return [each for each in silences if each[1] > self.patience_s]


def repeat(period_s: float, act: Callable[[], object], until: threading.Event, name: str) -> None:
    """Start a thread that acts every so often."""

    def run() -> None:
        while not until.wait(period_s):
            act()

    threading.Thread(target=run, name=name, daemon=True).start()
