"""What a step has to do, as the cost model sees it: chunks, decodes, and what they attend to."""

from collections.abc import Sequence
from typing import NamedTuple

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.step_rows import chunk_rows, decode_context


class ChunkWork(NamedTuple):
    """A chunk of a prompt: tokens whose keys and values are there already, and new ones."""

    num_cached_tokens: int
    num_new_tokens: int

    def num_keys(self, window: int | None) -> int:
        """Keys that it reads: all before its end, or those that its first query still sees and all after."""
        total = self.num_cached_tokens + self.num_new_tokens
        return total if window is None else min(total, window + self.num_new_tokens - 1)

    def num_pairs(self, window: int | None) -> float:
        """Pairs of a query and a key it sees: c (k + c/2) for c new tokens after k, and of a window what lies within."""
        cached, new = self
        if window is None or cached + new <= window:
            return new * (cached + new / 2)
        if cached >= window:
            return float(new * window)
        growing = window - cached  # the first queries see fewer than the window holds
        return growing * (cached + growing / 2) + (new - growing) * window


class StepWork(NamedTuple):
    """One step. decode_context: tokens that the decodes attend to, summed over them, their own included."""

    chunks: Sequence[ChunkWork] = ()
    num_decodes: int = 0
    decode_context: int = 0

    def check(self) -> None:
        """Raises: ConfigError if a count is negative."""
        if self.num_decodes < 0 or self.decode_context < 0 or (self.chunks and min(map(min, self.chunks)) < 0):
            raise ConfigError(f"counts of tokens must not be negative, got {self}: correct them.")

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + sum([chunk.num_new_tokens for chunk in self.chunks])

    @property
    def num_rows(self) -> int:
        return self.num_decodes + len(self.chunks)

    def num_decode_keys(self, window: int | None) -> int:
        """Keys that decodes read; of a window at most as many each, as if their contexts were equal."""
        return self.decode_context if window is None else min(self.decode_context, self.num_decodes * window)

    def num_keys(self, window: int | None) -> int:
        """Keys that all rows read."""
        return self.num_decode_keys(window) + sum(chunk.num_keys(window) for chunk in self.chunks)

    def num_pairs(self, window: int | None) -> float:
        """Pairs of a query and a key it sees, of all rows."""
        return self.num_decode_keys(window) + sum(chunk.num_pairs(window) for chunk in self.chunks)


def decode_work(num_decodes: int, context: int) -> StepWork:
    """A step of equal decodes alone. context: tokens that each attends to."""
    return StepWork((), num_decodes, num_decodes * context)


def prefill_work(num_tokens: int, num_cached_tokens: int = 0) -> StepWork:
    """A step of one chunk alone."""
    return StepWork((ChunkWork(num_cached_tokens, num_tokens),))


def scheduled_work(schedule: Schedule) -> StepWork:
    """What a schedule's rows come to: rows of one token are decodes, whatever their request calls them."""
    chunks = tuple([ChunkWork(row.start, row.num_tokens) for row in chunk_rows(schedule)])
    return StepWork(chunks, schedule.num_decode_rows, decode_context(schedule))
