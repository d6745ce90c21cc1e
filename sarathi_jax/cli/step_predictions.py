"""Predicted against measured step times: what a model of them says of each step of a run, before it learns from it."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

from sarathi_jax.engine.records import StepRecord, step_seconds
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.step_times import StepTimeModel, load_of


class StepPrediction(NamedTuple):
    """A step: tokens in it, what it took, what was said before it ran, and what the model says that learned from nothing but its profile."""

    num_tokens: int
    taken_s: float
    predicted_s: float
    profiled_s: float


def predict(
    times: StepTimeModel, runs: Iterable[tuple[Sequence[Schedule], Sequence[StepRecord]]]
) -> list[list[StepPrediction]]:
    """For each run, its steps; the model goes on learning from run to run.

    runs: schedules and records of the same steps, in the order in which they ran.
    """
    profiled, found = deepcopy(times), list[list[StepPrediction]]()
    for schedules, records in runs:
        steps: list[StepPrediction] = []
        for schedule, taken_s in zip(schedules, step_seconds(records), strict=True):
            load = load_of(schedule)
            steps.append(StepPrediction(load.num_tokens, taken_s, times.seconds(load), profiled.seconds(load)))
            times.observe(load, taken_s)
        found.append(steps)
    return found


def prediction_report(steps: Sequence[StepPrediction]) -> dict[str, Any]:
    """How far predictions are off, as shares of what steps took: of the model that learns, and of the one that does not."""
    taken = np.array([each.taken_s for each in steps])
    errors = np.abs(np.array([each.predicted_s for each in steps]) / taken - 1)
    profiled = np.abs(np.array([each.profiled_s for each in steps]) / taken - 1)
    return {
        "num_steps": len(steps),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.quantile(errors, 0.9)),
        "median_error_without_learning": float(np.median(profiled)),
    }
