"""What `simulate replay` says of step times: a run whose steps take what a formula says is predicted, and one whose second half is slower is learned."""

import pytest

from sarathi_jax.engine.flight_record import FlightRecord, Header
from sarathi_jax.scheduling.step_times import StepLoad
from sarathi_jax.simulation.replay_times import TimedStep, prediction_errors, profile_of

HEADER = Header(
    format="",
    version=1,
    reason="",
    written_at="",
    clock_s=0.0,
    model="m",
    replica=0,
    policy="sarathi",
    is_overlapped=True,
    is_prefix_caching=True,
    limits={"token_budget": 64, "max_num_seqs": 32, "max_model_len": 100, "num_pages": 10, "page_size": 16},
    versions={},
    num_dropped_events=0,
    num_requests=0,
    num_events=0,
)
RECORD = FlightRecord(HEADER, {}, [])


def timed_steps(count: int, factor: float = 1.0) -> list[TimedStep]:
    """Decodes padded to 16 and mixed steps padded to 64, whose times are 2 ms + 1 us a padded token + 0.1 us a token of context."""
    steps = []
    for number in range(count):
        num_decodes, context = 1 + number % 16, 100 * (1 + number % 16) + number
        chunk = 40 if number % 3 == 0 else 0
        load = StepLoad(num_decodes + chunk, num_decodes + bool(chunk), num_decodes, context, chunk * chunk / 2)
        padded = 64 if chunk else 16
        steps.append(TimedStep(load, padded, factor * (2e-3 + 1e-6 * padded + 1e-7 * context)))
    return steps


def test_a_run_that_follows_a_formula_is_predicted():
    errors = prediction_errors(RECORD, timed_steps(200))
    assert errors is not None
    assert (errors.source, errors.num_steps) == ("the first 100 steps", 100)
    assert errors.median < 0.01 and errors.p90 < 0.02
    assert errors.median_predicted_s == pytest.approx(errors.median_measured_s, rel=0.02)


def test_a_machine_that_became_slower_is_learned():
    """Twice as slow from the middle on: without learning every error would be a half."""
    errors = prediction_errors(RECORD, timed_steps(100) + timed_steps(100, factor=2.0))
    assert errors is not None and errors.median < 0.05


def test_a_profile_is_judged_by_all_steps():
    profile = profile_of(RECORD, timed_steps(100))
    assert (profile.decode_sizes, profile.mixed_sizes, len(profile.samples)) == ((16,), (64,), 100)
    errors = prediction_errors(RECORD, timed_steps(50), profile)
    assert errors is not None and (errors.source, errors.num_steps) == ("a profile", 50)
    assert errors.median < 0.01


def test_too_few_steps_predict_nothing():
    assert prediction_errors(RECORD, timed_steps(39)) is None
    assert prediction_errors(RECORD, timed_steps(40)) is not None
