"""A schedule as the flight recorder keeps it: what was decided, without tokens or sampling options, in as little time and memory as can be.

A step's decodes are mostly those of the step before, each one token further. Then all that is kept of them is that: a reference to the `Decodes` of an earlier
step, and how many steps ago that was. Recorder and replay both take notes with this, so that two runs are the same if their notes are.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow

type Table = array[int]


class Decodes(NamedTuple):
    """Rows of one token that sample, in order: their requests, and where they started when these were noted."""

    requests: tuple[int, ...]
    starts: "array[int]"


class StepNote(NamedTuple):
    """What one schedule decided; requests are numbers.

    decodes, num_steps_on: the decodes, each this many tokens further. others: (place, request, start, tokens, whether it samples) of all other rows.
    admitted: (request, batch slot, pages). grown: (request, pages that it got in addition).
    """

    step: int
    decodes: Decodes
    num_steps_on: int
    others: tuple[tuple[int, int, int, int, bool], ...]
    admitted: tuple[tuple[int, int, bytes], ...]
    grown: tuple[tuple[int, bytes], ...]
    preempted: tuple[int, ...]


class StepNotes:
    """Takes notes of schedules, one after the other.

    numbers: request id -> number, of all live requests; the caller keeps it.
    """

    def __init__(self, numbers: Mapping[str, int], page_size: int) -> None:
        self._numbers = numbers
        self._page_size = page_size
        self._num_pages: dict[int, int] = {}
        self._ids: list[str] | None = None  # of the last step's one-token rows, if the next step's may be the same
        self._decodes = Decodes((), array("i"))
        self._num_steps_on = 0
        self._by_offset: list[list[int]] | None = None

    def break_off(self) -> None:
        """Requests have changed in a way that their ids don't show: the next step is noted whole."""
        self._ids = None

    def forget(self, number: int) -> None:
        """A request has ended."""
        self._num_pages.pop(number, None)

    def take(self, schedule: Schedule) -> StepNote:
        """The note of the next schedule."""
        rows, num_short = schedule.rows, schedule.num_decode_rows
        short = rows if num_short == len(rows) else rows[:num_short]
        ids = [row[0] for row in short]
        numbers, preempted_ids = self._numbers, schedule.preempted_request_ids
        preempted = tuple([numbers[each] for each in preempted_ids if each in numbers]) if preempted_ids else ()
        others: list[tuple[int, int, int, int, bool]] = []
        admitted: list[tuple[int, int, bytes]] = []
        grown: list[tuple[int, bytes]] = []
        if ids == self._ids and not preempted_ids and self._goes_on(short):
            self._num_steps_on += 1
            self._note_crossing(short, grown)
        else:
            self._note_anew(short, ids, others, admitted, grown)
        for place in range(num_short, len(rows)):
            others.append(self._note_other(place, rows[place], admitted, grown))
        return StepNote(
            schedule.step, self._decodes, self._num_steps_on, tuple(others), tuple(admitted), tuple(grown), preempted
        )

    def _goes_on(self, short: Sequence[ScheduledRow]) -> bool:
        """Whether the first and the last row are where one more token brings them."""
        if not short:
            return True
        starts, next_on = self._decodes.starts, self._num_steps_on + 1
        return short[0].start == starts[0] + next_on and short[-1].start == starts[-1] + next_on

    def _note_anew(
        self,
        short: Sequence[ScheduledRow],
        ids: list[str],
        others: list[tuple[int, int, int, int, bool]],
        admitted: list[tuple[int, int, bytes]],
        grown: list[tuple[int, bytes]],
    ) -> None:
        """Note every row. One that starts, or does not sample, is none that the next step just goes on with."""
        odd = [place for place, row in enumerate(short) if row[7] or not row[6]]
        self._ids = None if odd else ids
        if odd:
            others += [self._note_other(place, short[place], admitted, grown) for place in odd]
            apart = set(odd)
            short = [row for place, row in enumerate(short) if place not in apart]
        numbers = self._numbers
        starts = [row[1] for row in short]
        self._decodes = Decodes(tuple([numbers[row[0]] for row in short]), array("i", starts))
        self._num_steps_on = 0
        self._by_offset = None
        page_size = self._page_size
        for place in [place for place, start in enumerate(starts) if not start % page_size]:
            self._note_growth(self._decodes.requests[place], short[place].block_table, grown)

    def _note_crossing(self, short: Sequence[ScheduledRow], grown: list[tuple[int, bytes]]) -> None:
        """A row gets another page where it starts one: look at those rows alone."""
        page_size = self._page_size
        if self._by_offset is None:
            self._by_offset = [[] for _ in range(page_size)]
            for place, start in enumerate(self._decodes.starts):
                self._by_offset[-start % page_size].append(place)
        for place in self._by_offset[self._num_steps_on % page_size]:
            self._note_growth(self._decodes.requests[place], short[place].block_table, grown)

    def _note_other(
        self,
        place: int,
        row: ScheduledRow,
        admitted: list[tuple[int, int, bytes]],
        grown: list[tuple[int, bytes]],
    ) -> tuple[int, int, int, int, bool]:
        number = self._numbers[row.request_id]
        if row.is_first:
            self._num_pages[number] = len(row.block_table)
            admitted.append((number, row.batch_slot, row.block_table.tobytes()))
        else:
            self._note_growth(number, row.block_table, grown)
        return place, number, row.start, row.num_tokens, row.does_sample

    def _note_growth(self, number: int, block_table: np.ndarray, grown: list[tuple[int, bytes]]) -> None:
        num_known = self._num_pages[number]
        if len(block_table) > num_known:
            grown.append((number, block_table[num_known:].tobytes()))
            self._num_pages[number] = len(block_table)


def page_ids(note: bytes) -> list[int]:
    """Pages from a note."""
    return np.frombuffer(note, np.int32).tolist()
