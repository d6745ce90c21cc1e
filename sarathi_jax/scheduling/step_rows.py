"""The rows of a planned step, kept so that those of decodes cost next to nothing until somebody looks at one: a simulator looks at few.

Who only sums over rows asks the functions at the end, which make none.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import overload

import numpy as np

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow


class StepRows(Sequence[ScheduledRow]):
    """Decodes in columns, which become rows when one is looked at; and then all other rows. A row is the same whenever it is made: of its request only that is
    read which never changes, and tokens that are there already.

    Args:
      decodes, decode_starts, slots, block_tables: by decode. is_pending: whether each one's token is in flight; None: none is. masks: by place.
      others: all other rows.
    """

    def __init__(
        self,
        decodes: Sequence[Request],
        decode_starts: Sequence[int],
        slots: Sequence[int | None],
        block_tables: Sequence[np.ndarray],
        is_pending: Sequence[bool] | None,
        masks: Mapping[int, np.ndarray],
        others: Sequence[ScheduledRow],
    ) -> None:
        assert None not in slots, "a token is planned of a request that does not run"
        self.decodes = decodes
        self.decode_starts = decode_starts
        self.others = others
        self._slots = slots
        self._block_tables = block_tables
        self._is_pending = is_pending
        self._masks = masks
        self._rows: tuple[ScheduledRow, ...] | None = None

    def __len__(self) -> int:
        return len(self.decodes) + len(self.others)

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
        columns = zip(self.decodes, self.decode_starts, self._slots, self._block_tables, is_pending, strict=False)
        for request, start, slot, block_table, is_in_flight in columns:
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


def decode_starts(schedule: Schedule) -> Sequence[int]:
    """Where a step's rows of one token start."""
    rows = schedule.rows
    if not isinstance(rows, StepRows):
        return [row.start for row in rows[: schedule.num_decode_rows]]
    others = rows.others[: schedule.num_decode_rows - len(rows.decodes)]
    return [*rows.decode_starts, *[row.start for row in others]] if others else rows.decode_starts


def chunk_rows(schedule: Schedule) -> Sequence[ScheduledRow]:
    """A step's longer rows."""
    rows, num_short = schedule.rows, schedule.num_decode_rows
    return rows.others[num_short - len(rows.decodes) :] if isinstance(rows, StepRows) else rows[num_short:]


def num_grown_outputs(schedule: Schedule) -> int:
    """Rows of one token that go on with an output: they compute its last token and sample another one."""
    rows, num_decodes = schedule.rows, 0
    if isinstance(rows, StepRows):
        rows, num_decodes = rows.others, len(rows.decodes)
    others = rows[: schedule.num_decode_rows - num_decodes]
    return num_decodes + len([row for row in others if row.num_output_tokens and row.does_sample])
