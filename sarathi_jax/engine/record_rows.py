"""The rows of recorded steps, kept as the record has them: what a step has in common with the one before it stands in memory once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from sarathi_jax.engine.flight_record import Scheduled
from sarathi_jax.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a step, written out."""

    request: int
    start: int
    num_tokens: int
    does_sample: bool


class Decodes:
    """Rows of one token that sample, where they were written out: requests and starts."""

    def __init__(self, requests: Sequence[int], starts: Sequence[int]) -> None:
        self.requests = requests
        self.starts = starts

    @cached_property
    def places(self) -> dict[int, int]:
        """Of each request among them."""
        return {request: place for place, request in enumerate(self.requests)}


@dataclass(frozen=True, slots=True)
class StepRows:
    """All rows of one step. num_steps_on: tokens that the decodes are further. others: with their places among all rows, ascending."""

    decodes: Decodes
    num_steps_on: int
    others: Sequence[tuple[int, Row]]

    @property
    def num_rows(self) -> int:
        return len(self.decodes.requests) + len(self.others)

    @property
    def num_tokens(self) -> int:
        return len(self.decodes.requests) + sum(row.num_tokens for _, row in self.others)

    def of(self, request: int) -> Row | None:
        """A request's row, if it has one."""
        place = self.decodes.places.get(request)
        if place is not None:
            return Row(request, self.decodes.starts[place] + self.num_steps_on, 1, True)
        return next((row for _, row in self.others if row.request == request), None)

    def sampling(self) -> Iterator[int]:
        """Requests whose rows sample a token."""
        return chain(self.decodes.requests, (row.request for _, row in self.others if row.does_sample))

    def written_out(self) -> list[Row]:
        """All of them, in order."""
        starts = self.decodes.starts
        rows = [
            Row(request, start + self.num_steps_on, 1, True)
            for request, start in zip(self.decodes.requests, starts, strict=True)
        ]
        for place, row in self.others:
            rows.insert(place, row)
        return rows


class RowReader:
    """Reads rows of steps, one after the other in the order of the record: what is left out of a line stands in the one before."""

    def __init__(self) -> None:
        self._decodes = Decodes((), ())
        self._num_steps_on = 0

    def rows(self, scheduled: Scheduled) -> StepRows:
        """Of the next step. Raises: ConfigError if they don't hold together."""
        if scheduled.decodes is None:
            self._num_steps_on += 1
        else:
            requests, starts = scheduled.decodes
            if len(requests) != len(starts):
                raise ConfigError(
                    f"A flight record's decodes must have a start each, got {len(requests)} requests and {len(starts)} starts in step {scheduled.step}: record"
                    " again."
                )
            self._decodes, self._num_steps_on = Decodes(requests, starts), 0
        others = [
            (place, Row(request, start, num_tokens, does_sample))
            for place, request, start, num_tokens, does_sample in scheduled.others
        ]
        return StepRows(self._decodes, self._num_steps_on, others)
