"""The end of a group, when one of its processes is lost: noticed once, and told to everybody who waits, whatever for.

A wait for a device can't be broken off: a collective whose other end is gone never returns. So nobody who must be told waits there: helper threads do, and
the others wait for a future that the loss of the group ends too.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from sarathi_jax.errors import GroupError


class Loss:
    """Whether the group has ended before its time. error: says by whom and why; None: it lives."""

    def __init__(self) -> None:
        self.error: GroupError | None = None
        self._is_ending = False
        self._has_ended = threading.Event()
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()

    def set(self, error: GroupError, tell: Callable[[], object] = lambda: None) -> bool:
        """End the group.

        tell: called before anybody here hears of it, who may end the process at once.
        Returns: whether this was the first to say so; only the first counts. Either way the group has ended then: who was not the first waits for the one
          that is still telling.
        """
        with self._lock:
            is_first, self._is_ending = not self._is_ending, True
        if not is_first:
            self._has_ended.wait()
            return False
        try:
            tell()
        finally:
            with self._lock:
                self.error = error
                waiting, self._waiting = self._waiting, set()
            self._has_ended.set()
            for future in waiting:
                with suppress(InvalidStateError):
                    future.set_exception(error)
        return True

    def check(self) -> None:
        """Raises: GroupError if the group has ended."""
        if self.error is not None:
            raise self.error

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the group, for a while. Returns: whether it has come."""
        return self._has_ended.wait(seconds)

    def future(self) -> "Future[Any]":
        """A future that the loss of the group ends with its error."""
        future: Future[Any] = Future()
        with self._lock:
            if self.error is None:
                self._waiting.add(future)
            else:
                future.set_exception(self.error)
        return future

    def resolve[T](self, future: "Future[T]", value: T) -> None:
        """Give a future its value, unless the group has ended."""
        with self._lock:
            self._waiting.discard(future)
        with suppress(InvalidStateError):
            future.set_result(value)

    def reject(self, future: "Future[Any]", error: BaseException) -> None:
        """Let a future raise this error, unless the group has ended."""
        with self._lock:
            self._waiting.discard(future)
        with suppress(InvalidStateError):
            future.set_exception(error)

    def run[T](self, work: Callable[[], T]) -> T:
        """The result of `work`, which a thread of its own does. Raises: what it raises; GroupError as soon as the group has ended, wherever the work is."""
        future: Future[T] = self.future()

        def run_it() -> None:
            try:
                self.resolve(future, work())
            except BaseException as error:
                self.reject(future, error)

        threading.Thread(target=run_it, name="group work", daemon=True).start()
        return future.result()
