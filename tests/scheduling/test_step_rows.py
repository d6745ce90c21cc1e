"""Rows and outputs that are made when they are looked at: the same whenever that is."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult, row_columns
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.step_rows import chunk_rows, decode_context, num_grown_outputs
from sarathi_jax.scheduling.token_output import StepOutputs

Make = Callable[..., Any]
TOKEN = 7


def plain(rows: Sequence[ScheduledRow]) -> list[tuple[object, ...]]:
    """Rows as values that compare: what they refer to is copied."""
    return [(*row[:4], row.block_table.tolist(), *row[5:]) for row in rows]


def run(scheduler: Scheduler, num_in_flight: int, *, looks_at_once: bool) -> list[list[tuple[object, ...]]]:
    """Serve all, so many steps in flight at a time. Returns: the rows of all steps, looked at when each was scheduled, or when all had ended."""
    in_flight: list[Schedule] = []
    schedules: list[Schedule] = []
    seen: list[list[tuple[object, ...]]] = []
    while scheduler.has_unfinished or in_flight:
        schedule = scheduler.schedule(0.0) if len(in_flight) < num_in_flight else None
        if schedule is not None:
            in_flight.append(schedule)
            schedules.append(schedule)
            if looks_at_once:
                seen.append(plain(schedule.rows))
        else:
            done = in_flight.pop(0)
            scheduler.complete(done, StepResult([TOKEN] * len(done.rows)), 0.0)
    return seen if looks_at_once else [plain(schedule.rows) for schedule in schedules]


@pytest.mark.parametrize("num_in_flight", [1, 2])
def test_rows_are_the_same_at_once_and_when_all_is_over(
    make_scheduler: Make, make_request: Make, num_in_flight: int
) -> None:
    """With too few pages, so that requests lose theirs and get others, and some ending early, while rows of them are in flight."""
    runs: list[list[list[tuple[object, ...]]]] = []
    for looks_at_once in (True, False):
        scheduler = make_scheduler(num_pages=14)
        for place in range(6):
            prompt = [10 + place] * (5 + 3 * place)
            stops = [TOKEN] if place == 2 else []
            scheduler.add(make_request(str(place), prompt, max_tokens=4 + 3 * place, stop_token_ids=stops))
        runs.append(run(scheduler, num_in_flight, looks_at_once=looks_at_once))
    assert runs[0] == runs[1]
    assert max(len(rows) for rows in runs[0]) > 2


def test_sums_over_rows_are_those_of_the_rows(make_request: Make, make_stepper: Make) -> None:
    """Of a step of two decodes, a prompt's last token and a chunk."""
    stepper = make_stepper(make_request("a", 3), make_request("b", 4), make_request("c", 17))
    stepper.step()
    stepper.step()
    stepper.scheduler.add(make_request("d", 1))
    stepper.scheduler.add(make_request("e", [50] * 30))
    schedule = stepper.scheduler.schedule(0.0)
    rows = tuple(schedule.rows)
    assert [(row.request_id, row.start, row.num_tokens) for row in rows] == [
        ("a", 4, 1), ("b", 5, 1), ("c", 17, 1), ("d", 0, 1), ("e", 0, 12),
    ]  # fmt: skip
    assert decode_context(schedule) == 5 + 6 + 18 + 1
    for columns in (row_columns(schedule.rows), row_columns(rows)):
        assert [column.tolist() for column in columns] == [[4, 5, 17, 0, 0], [1, 1, 1, 1, 12], [0, 1, 2, 3, 4]]
        assert {column.dtype for column in columns} == {np.dtype(np.int32)}
    assert list(chunk_rows(schedule)) == [rows[4]]
    assert num_grown_outputs(schedule) == 3  # the fourth is a whole prompt


def test_outputs_say_who_got_a_token_and_who_ended(make_request: Make, make_stepper: Make) -> None:
    """Of four decodes one ends by length, one by a stop token, one was aborted before; a prompt's last chunk brings a token as well."""
    requests = [make_request(name, 2, max_tokens=3 if name == "b" else 8, stop_token_ids=[9]) for name in "abcd"]
    stepper = make_stepper(*requests)
    stepper.step()
    stepper.step()
    stepper.scheduler.add(make_request("e", 3))
    schedule = stepper.scheduler.schedule(0.0)
    stepper.scheduler.abort("d")
    outputs = stepper.scheduler.complete(schedule, StepResult([5, 5, 9, 5, 5]), 0.0)
    assert isinstance(outputs, StepOutputs)
    said = [(each.request.request_id, each.token_id, each.finish_reason, each.stop_token_id) for each in outputs]
    assert said == [("a", 5, None, None), ("b", 5, "length", None), ("c", 9, "stop", 9), ("e", 5, None, None)]
    assert [[each.request_id for each in got] for got in (outputs.decodes, outputs.readers)] == [["a", "b", "c"], ["e"]]
    assert [each.request.request_id for each in outputs.ended] == ["b", "c"]
    assert len(outputs) == 4 and outputs[1].request is requests[1]


def test_a_table_that_a_row_holds_does_not_change(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 7, max_tokens=6))
    stepper.step()
    schedule, _ = stepper.step()
    table = schedule.rows[0].block_table
    before = table.copy()
    stepper.drain()
    assert np.array_equal(schedule.rows[0].block_table, before) and not table.flags.writeable
