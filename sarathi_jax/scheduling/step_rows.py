"""The rows of a planned step, kept so that those of decodes cost next to nothing until somebody looks at one: a simulator looks at few.

Who only sums over rows asks the functions at the end, which make none.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import repeat
from typing import overload

import numpy as np

from sarathi_jax.scheduling.decode_group import DecodeGroup
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import RowColumns, Schedule, ScheduledRow, row_columns


class StepRows(Sequence[ScheduledRow]):
    """Decodes in columns, which become rows when one is looked at; and then all other rows. A row is the same whenever it is made: of its request only that is
    read which never changes, and tokens that are there already.

    Args:
      group: the decodes, as they are now. crossings: what its `advance` returned.
      is_pending: whether each one's token is in flight; None: none is. masks: by place.
      others, readers: all other rows, and their requests.
    """

    def __init__(
        self,
        group: DecodeGroup,
        crossings: Sequence[int],
        is_pending: Sequence[bool] | None,
        masks: Mapping[int, np.ndarray],
        others: Sequence[ScheduledRow] = (),
        readers: Sequence[Request] = (),
    ) -> None:
        self.group = group
        self.crossings = crossings
        self.others = others
        self.readers = readers
        self.num_decodes = len(group.requests)
        self._num_rows = self.num_decodes + len(others)
        self._num_steps_on = group.num_steps - 1
        self._block_tables = group.block_tables
        self._is_pending = is_pending
        self._masks = masks
        self._rows: tuple[ScheduledRow, ...] | None = None

    @property
    def requests(self) -> Sequence[Request]:
        """Of all rows."""
        return [*self.group.requests, *self.readers] if self.readers else self.group.requests

    @property
    def decode_context(self) -> int:
        """Tokens that the decodes attend to, summed over them, their own included."""
        return self.group.sum_of_starts + self.num_decodes * (self._num_steps_on + 1)

    @cached_property
    def columns(self) -> RowColumns:
        others = row_columns(self.others)
        if not self.num_decodes:
            return others
        starts, slots = self.group.arrays
        return RowColumns(
            np.concatenate((starts + self._num_steps_on, others.starts)),
            np.concatenate((np.ones(self.num_decodes, np.int32), others.num_tokens)),
            np.concatenate((slots, others.batch_slots)),
        )

    def num_decoded_tokens(self, place: int) -> int:
        """Tokens of a decode that are computed with this step."""
        return self.group.starts[place] + self._num_steps_on + 1

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[ScheduledRow]:
        return iter(self._made())

    @overload
    def __getitem__(self, index: int) -> ScheduledRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ScheduledRow]: ...
    def __getitem__(self, index: int | slice) -> ScheduledRow | Sequence[ScheduledRow]:
        return self._made()[index]

    def _made(self) -> tuple[ScheduledRow, ...]:
        if self._rows is None:
            self._rows = (*self._decode_rows(), *self.others)
        return self._rows

    def _decode_rows(self) -> list[ScheduledRow]:
        new_row, rows, is_pending = tuple.__new__, list[ScheduledRow](), self._is_pending or repeat(False)
        group, num_steps_on = self.group, self._num_steps_on
        columns = zip(group.requests, group.starts, group.slots, self._block_tables, is_pending, strict=False)
        for request, first_start, slot, block_table, is_in_flight in columns:
            start = first_start + num_steps_on
            token_ids = None if is_in_flight else request.token_ids[start : start + 1]
            num_prompt_tokens = request.num_prompt_tokens
            row = (
                request.request_id, start, 1, token_ids, block_table, slot, True, False, (), num_prompt_tokens,
                start + 1 - num_prompt_tokens, request.sampling, request.seed, None, None,
            )  # fmt: skip
            rows.append(new_row(ScheduledRow, row))
        for place, mask in self._masks.items():
            rows[place] = rows[place]._replace(token_mask=mask)
        return rows


def decode_context(schedule: Schedule) -> int:
    """Tokens that a step's rows of one token attend to, summed over them, their own included."""
    rows, num_short = schedule.rows, schedule.num_decode_rows
    if not isinstance(rows, StepRows):
        return sum([row.start for row in rows[:num_short]]) + num_short
    others = rows.others[: num_short - rows.num_decodes] if num_short > rows.num_decodes else ()
    return rows.decode_context + sum([row.start + 1 for row in others])


def chunk_rows(schedule: Schedule) -> Sequence[ScheduledRow]:
    """A step's longer rows."""
    rows, num_short = schedule.rows, schedule.num_decode_rows
    return rows.others[num_short - rows.num_decodes :] if isinstance(rows, StepRows) else rows[num_short:]


def num_grown_outputs(schedule: Schedule) -> int:
    """Rows of one token that go on with an output: they compute its last token and sample another one."""
    rows, num_decodes = schedule.rows, 0
    if isinstance(rows, StepRows):
        rows, num_decodes = rows.others, rows.num_decodes
    if not rows:
        return num_decodes
    others = rows[: schedule.num_decode_rows - num_decodes]
    return num_decodes + len([row for row in others if row.num_output_tokens and row.does_sample])
