"""Stalls by their definition, on schedules written by hand."""

import numpy as np
import pytest

from sarathi_jax.engine.stalls import count_stalls, stalls_by_request
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow


def step_of(index: int, sampling: str, reading: str = "", preempted: str = "") -> Schedule:
    """A step: requests of one letter each, those that sample and those that read on in their prompt."""
    rows = tuple(
        ScheduledRow(name, 0, 1, (0,), np.zeros(1, np.int32), 0, name in sampling, False, (), 1, 0, SamplingParams(), 0)
        for name in sampling + reading
    )
    return Schedule(index, rows, len(rows), len(rows), tuple(preempted))


@pytest.mark.parametrize(
    ("steps", "num_stalls"),
    [
        ([("a", "b", ""), ("a", "b", ""), ("ab", "", "")], 0),  # b is still reading
        ([("ab", "", ""), ("c", "", ""), ("d", "", ""), ("abcd", "", "")], 2 + 2 + 1),
        ([("ab", "", ""), ("a", "", "b"), ("a", "b", ""), ("ab", "", "")], 0),  # b was preempted
        ([("ab", "", ""), ("b", "", ""), ("b", "", "")], 0),  # a has ended
    ],
)
def test_a_stall_is_a_running_decode_left_out_of_a_step(steps: list[tuple[str, str, str]], num_stalls: int):
    assert count_stalls([step_of(index, *step) for index, step in enumerate(steps)]) == num_stalls


def test_stalls_are_told_by_request():
    steps = [step_of(0, "ab"), step_of(1, "", "c"), step_of(2, "bc"), step_of(3, "abc")]
    assert stalls_by_request(steps) == {"a": 2, "b": 1}


def test_steps_that_a_pipeline_leaves_to_others_are_no_stalls():
    """Two stages: a and b take turns. Then a is left out of a step, and b of three."""
    turns = ["a", "b", "a", "b", "c", "a", "c", "c", "b"]
    steps = [step_of(index, name) for index, name in enumerate(turns)]
    assert stalls_by_request(steps, num_stages=2) == {"a": 1, "b": 3}
