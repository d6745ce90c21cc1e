"""Step times of a recorded run against what a model says of them: fitted to a profile, or else to the run's own first half."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from sarathi_jax.engine.flight_record import Completed, FlightRecord
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.step_profile import StepProfile, StepSample
from sarathi_jax.scheduling.step_times import StepLoad, StepTimeModel, load_of

MIN_STEPS = 20  # to fit a model to, or to judge one


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step, the tokens that it was padded to, and what it took: from when it could begin until its tokens were on the host."""

    load: StepLoad
    bucket_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PredictionErrors:
    """How far predictions are from what steps took, as shares of it. source: what the model was fitted to; it goes on learning from each step once it has been judged by it."""

    source: str
    num_steps: int
    median: float
    p90: float
    median_measured_s: float
    median_predicted_s: float


class StepTimer:
    """Keeps the steps of a replay with their times; give `observe` to `replay`."""

    def __init__(self) -> None:
        self.steps: list[TimedStep] = []

    def observe(self, schedule: Schedule, end: Completed, seconds: float) -> None:
        if seconds > 0:
            self.steps.append(TimedStep(load_of(schedule), end.bucket_tokens, seconds))


def prediction_errors(
    record: FlightRecord, steps: Sequence[TimedStep], profile: StepProfile | None = None
) -> PredictionErrors | None:
    """Judge a model by each step before it learns from it.

    profile: None: the model is fitted to the first half of the steps, and judged by the second.
    Returns: None if there are too few steps.
    """
    if profile is not None:
        model, judged, source = StepTimeModel.fit(profile), steps, "a profile"
    elif len(steps) >= 2 * MIN_STEPS:
        half = len(steps) // 2
        model, judged = StepTimeModel.fit(profile_of(record, steps[:half])), steps[half:]
        source = f"the first {half} steps"
    else:
        return None
    if len(judged) < MIN_STEPS:
        return None
    predicted: list[float] = []
    for step in judged:
        predicted.append(model.seconds(step.load))
        model.observe(step.load, step.seconds)
    measured = [step.seconds for step in judged]
    errors = [abs(one / other - 1) for one, other in zip(predicted, measured, strict=True)]
    return PredictionErrors(
        source, len(judged), median(errors), float(np.quantile(errors, 0.9)), median(measured), median(predicted)
    )


def profile_of(record: FlightRecord, steps: Sequence[TimedStep]) -> StepProfile:
    """Recorded steps as a profile: each is a sample, and the sizes are those of the buckets that were run."""
    header = record.header
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    for step in steps:
        sizes[step.load.is_decode_only].add(step.bucket_tokens)
    return StepProfile(
        model=header.model,
        device="",
        mesh="",
        dtype="",
        kv_dtype="",
        kernels="",
        jax_version=header.versions.get("jax", ""),
        token_budget=int(header.limits["token_budget"] or 1),
        max_num_seqs=int(header.limits["max_num_seqs"] or 1),
        max_model_len=int(header.limits["max_model_len"] or 1),
        num_kv_tokens=int(header.limits["num_pages"] or 1) * int(header.limits["page_size"] or 1),
        decode_sizes=tuple(sorted(sizes[True])),
        mixed_sizes=tuple(sorted(sizes[False])),
        samples=tuple(
            StepSample(**step.load._asdict(), median_s=step.seconds, p99_s=step.seconds, num_repeats=1)
            for step in steps
        ),
    )
