"""Who is let in: counted before anything is done for a request, and refused at once with an honest time to come back."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Self

from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.errors import ApiError

RATE_WINDOW_S = 30.0
MAX_RETRY_S = 60


class Ticket:
    """A request that was let in. Given back at the end of a `with`, unless it is kept: then whoever keeps it closes it, however the answer ends."""

    def __init__(self, give_back: Callable[["Ticket"], None], key: str) -> None:
        self._give_back = give_back
        self.key = key
        self.num_tokens = 0
        self.is_open = True
        self._is_kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self._is_kept:
            self.close()

    def keep(self) -> None:
        self._is_kept = True

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._give_back(self)


class Admission:
    """Counts requests and their prompts.

    num_keys: keys that clients may come with. num_slots: requests that the engine runs at a time. refused: how many, by the error's code.
    """

    def __init__(self, config: ServeConfig, num_keys: int) -> None:
        self._config = config
        self._num_keys = num_keys
        self.num_slots = 0
        self.refused = Counter[str]()
        self._num_open = 0
        self._num_tokens = 0
        self._by_key: Counter[str] = Counter()
        self._ends_s: deque[float] = deque()

    @property
    def num_open(self) -> int:
        """Requests that were let in and are not over."""
        return self._num_open

    def check_room(self, key: str) -> None:
        """Raises: ApiError 429 or 503 if one more request could not be let in now."""
        limit = self.num_slots + self._config.max_queued_requests
        per_key = self._config.max_requests_per_key or (max(1, limit // 2) if self._num_keys > 1 else limit)
        if self._by_key[key] >= per_key and self._num_open < limit:
            raise self._refusal(429, "rate_limit_exceeded", f"This key may have {per_key} requests at a time.")
        if self._num_open >= limit:
            raise self._overloaded(f"{self._num_open} requests are being served or wait, and at most {limit} may.")

    def enter(self, key: str) -> Ticket:
        """Let one more request in. Raises: as `check_room`."""
        self.check_room(key)
        self._num_open += 1
        self._by_key[key] += 1
        return Ticket(self._give_back, key)

    def add_tokens(self, ticket: Ticket, num_tokens: int) -> None:
        """A request's prompts are known. Raises: ApiError 503 if there is more to read than may wait."""
        limit = self._config.max_queued_tokens
        if limit is not None and self._num_tokens and self._num_tokens + num_tokens > limit:
            raise self._overloaded(f"Prompts of {self._num_tokens} tokens wait, and at most {limit} may.")
        self._num_tokens += num_tokens
        ticket.num_tokens += num_tokens

    def read(self, ticket: Ticket) -> None:
        """A request's first token has come: its prompts wait no more."""
        self._num_tokens -= ticket.num_tokens
        ticket.num_tokens = 0

    def retry_after_s(self) -> int:
        """When there should be room: after as long as it took lately to end one of those that are in."""
        now_s = time.perf_counter()
        while self._ends_s and now_s - self._ends_s[0] > RATE_WINDOW_S:
            self._ends_s.popleft()
        if not self._ends_s:
            return 1
        window_s = max(now_s - self._ends_s[0], 0.1)
        num_waiting = max(self._num_open - self.num_slots, 1)
        return min(max(math.ceil(num_waiting * window_s / len(self._ends_s)), 1), MAX_RETRY_S)

    def _give_back(self, ticket: Ticket) -> None:
        self.read(ticket)
        self._num_open -= 1
        self._by_key[ticket.key] -= 1
        if not self._by_key[ticket.key]:
            del self._by_key[ticket.key]
        self._ends_s.append(time.perf_counter())

    def _overloaded(self, why: str) -> ApiError:
        return self._refusal(503, "server_overloaded", f"The server is overloaded: {why}")

    def _refusal(self, status: int, code: str, message: str) -> ApiError:
        self.refused[code] += 1
        after_s = self.retry_after_s()
        return ApiError(status, code, f"{message} Try again in {after_s} s.", headers={"Retry-After": str(after_s)})
