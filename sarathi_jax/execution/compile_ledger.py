"""What was compiled, when, at what cost. After `mark_ready`, a compile is a fault: requests wait for it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One compiled program.

    name: the bucket's, or the helper program's. num_tokens, num_rows: its shape; 0 for helper programs.
    seconds: tracing and compiling. memory_bytes: temporary memory of one run on one device. is_cache_hit: taken from the persistent cache.
    """

    name: str
    num_tokens: int
    num_rows: int
    seconds: float
    memory_bytes: int
    is_cache_hit: bool
    is_after_ready: bool


class CompileLedger:
    """All programs of one executor."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self._is_ready = False

    def record(
        self, name: str, shape: tuple[int, int], seconds: float, memory_bytes: int, *, is_cache_hit: bool
    ) -> None:
        """Add a program. After ready this is logged as a warning."""
        entry = LedgerEntry(name, *shape, seconds, memory_bytes, is_cache_hit, self._is_ready)
        self.entries.append(entry)
        if self._is_ready:
            logger.warning("compiled %s while serving: requests waited %.2f s", name, seconds)

    def absorb(self, other: "CompileLedger") -> None:
        """Take in the programs of another executor."""
        self.entries += other.entries

    def mark_ready(self) -> None:
        """From here on nothing should compile."""
        self._is_ready = True

    @property
    def num_after_ready(self) -> int:
        """Programs compiled while serving."""
        return sum(entry.is_after_ready for entry in self.entries)

    @property
    def num_cache_hits(self) -> int:
        return sum(entry.is_cache_hit for entry in self.entries)

    @property
    def max_memory_bytes(self) -> int:
        """Temporary memory of the largest program."""
        return max((entry.memory_bytes for entry in self.entries), default=0)


class _HitCount(threading.local):
    value = 0


_hits = _HitCount()


def _count_hit(event: str, **_: object) -> None:
    if event == CACHE_HIT_EVENT:
        _hits.value += 1


jax.monitoring.register_event_listener(_count_hit)


@contextmanager
def watch_cache() -> Iterator[list[bool]]:
    """Whether the compile inside came from the persistent cache: the list yielded holds the answer afterwards."""
    before, answer = _hits.value, [False]
    yield answer
    answer[0] = _hits.value > before
