"""What a step has to do, as the cost model sees it: chunks, decodes and what they attend to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.schedule import Schedule


class ChunkWork(NamedTuple):
    """A chunk of a prompt: tokens whose keys and values are there already, and new ones."""

    num_cached_tokens: int
    num_new_tokens: int


@dataclass(frozen=True, slots=True)
class StepWork:
    """One step. decode_context: tokens that the decodes attend to, summed over them, their own included.

    Raises: ConfigError if a count is negative.
    """

    chunks: Sequence[ChunkWork] = ()
    num_decodes: int = 0
    decode_context: int = 0

    def __post_init__(self) -> None:
        if min((self.num_decodes, self.decode_context, *(number for chunk in self.chunks for number in chunk))) < 0:
            raise ConfigError(f"counts of tokens must not be negative, got {self}: correct them.")

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + sum(chunk.num_new_tokens for chunk in self.chunks)

    @property
    def num_rows(self) -> int:
        return self.num_decodes + len(self.chunks)


def decode_work(num_decodes: int, context: int) -> StepWork:
    """A step of equal decodes alone. context: tokens that each attends to."""
    return StepWork((), num_decodes, num_decodes * context)


def prefill_work(num_tokens: int, num_cached_tokens: int = 0) -> StepWork:
    """A step of one chunk alone."""
    return StepWork((ChunkWork(num_cached_tokens, num_tokens),))


def scheduled_work(schedule: Schedule) -> StepWork:
    """What a schedule's rows come to: rows of one token are decodes, whatever their request calls them."""
    decodes = [row.start + 1 for row in schedule.rows if row.num_tokens == 1]
    chunks = tuple(ChunkWork(row.start, row.num_tokens) for row in schedule.rows if row.num_tokens > 1)
    return StepWork(chunks, len(decodes), sum(decodes))
