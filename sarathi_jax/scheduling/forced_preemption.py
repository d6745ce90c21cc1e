"""Preemptions that nothing calls for, for tests: tokens have to be the same with them."""

from collections.abc import Sequence

from sarathi_jax.scheduling.request import Request


class ForcedPreemption:
    """Every k-th step the last running request that got a token since its admission starts over. So each admission brings a token. every: k; None: nobody does."""

    def __init__(self, every: int | None) -> None:
        self._every = every
        self._last_step = -1

    def choose(self, running: Sequence[Request], step: int) -> Request | None:
        """Whose turn it is before this step; once, however often the step is asked for in vain."""
        if self._every is None or step % self._every != self._every - 1 or step == self._last_step:
            return None
        for request in reversed(running):
            if request.num_tokens > request.num_prefill_tokens:
                self._last_step = step
                return request
        return None
