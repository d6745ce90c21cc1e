"""Step times: what is fitted is what the samples were made with, sizes are padded as buckets are, and what is learned online is drift and not hiccups."""

import copy
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.step_profile import StepProfile, StepSample
from sarathi_jax.scheduling.step_times import (
    StepLoad,
    StepTimeModel,
    _non_negative_least_squares,
    fit_errors,
    load_of,
    padded_size,
    tile_sizes,
)

DECODE_SIZES, MIXED_SIZES = (1, 4, 16, 32), (32, 128, 256, 384, 512)
# The machine of these tests: 5 ms and 10 us a token of decodes, 7 ms and 20 us a token of other steps, of the bucket's tokens each.
PER_ROW_S, PER_CONTEXT_S, PER_PAIR_S = 30e-6, 0.1e-6, 4e-9


def true_seconds(load: StepLoad) -> float:
    if load.is_decode_only:
        base_s = 5e-3 + 10e-6 * padded_size(load.num_tokens, DECODE_SIZES)
    else:
        base_s = 7e-3 + 20e-6 * padded_size(load.num_tokens, MIXED_SIZES)
    return base_s + PER_ROW_S * load.num_rows + PER_CONTEXT_S * load.decode_context + PER_PAIR_S * load.chunk_pairs


def decodes(num_decodes: int, context: int) -> StepLoad:
    return StepLoad(num_decodes, num_decodes, num_decodes, num_decodes * context, 0.0)


def mixed(num_tokens: int, num_decodes: int = 0, context: int = 0, cached: int = 0) -> StepLoad:
    chunk = num_tokens - num_decodes
    return StepLoad(num_tokens, num_decodes + 1, num_decodes, num_decodes * context, chunk * (cached + chunk / 2))


def loads_to_profile(mixed_sizes: Sequence[int] = MIXED_SIZES) -> list[StepLoad]:
    loads = [decodes(size - less, context) for size in DECODE_SIZES for less in (0, size // 4) for context in (9, 2000)]
    for size in mixed_sizes:
        loads += [mixed(size), mixed(size, cached=3000), mixed(size, 8, 500), mixed(size, 24, 2000, cached=1000)]
    return loads


def profile_of(
    loads: Iterable[StepLoad], seconds: Callable[[StepLoad], float] = true_seconds, **options: Any
) -> StepProfile:
    sizes = {"decode_sizes": DECODE_SIZES, "mixed_sizes": MIXED_SIZES, **options}
    names = {"model": "m", "device": "d", "mesh": "", "dtype": "float32", "kv_dtype": "float32", "kernels": "xla"}
    limits = {"token_budget": 512, "max_num_seqs": 32, "max_model_len": 4096, "num_kv_tokens": 32 * 4096}
    samples = []
    for load in loads:
        took_s = seconds(load)
        samples.append(StepSample(**load._asdict(), median_s=took_s, p99_s=took_s, num_repeats=1))
    return StepProfile(**names, jax_version="0", **limits, **sizes, samples=tuple(samples))


def random_loads(count: int, seed: int) -> list[StepLoad]:
    rng = random.Random(seed)
    loads = [decodes(rng.randint(1, 32), rng.randint(1, 4000)) for _ in range(count // 2)]
    while len(loads) < count:
        num_decodes = rng.randint(0, 31)
        num_tokens = rng.randint(num_decodes + 2, 512)
        loads.append(mixed(num_tokens, num_decodes, rng.randint(1, 4000), rng.randint(0, 4000)))
    rng.shuffle(loads)
    return loads


@pytest.fixture
def model() -> StepTimeModel:
    """Fitted to samples without noise."""
    return StepTimeModel.fit(profile_of(loads_to_profile()))


def test_load_of_a_schedule(make_stepper: Callable[..., Any], make_request: Callable[..., Any]) -> None:
    # Budget 16, two prompts of 3 read at once; with their first tokens they attend to 4 each. Then 14 tokens of a prompt of 20 go along with both.
    stepper = make_stepper(make_request("a", 3, max_tokens=9), make_request("b", 3, max_tokens=9))
    assert load_of(stepper.step()[0]) == StepLoad(6, 2, 0, 0, 2 * 3 * 3 / 2)
    stepper.scheduler.add(make_request("c", 20, max_tokens=9))
    assert load_of(stepper.step()[0]) == StepLoad(16, 3, 2, 2 * 4, 14 * 7.0)
    assert load_of(stepper.step()[0]) == StepLoad(2 + 6, 3, 2, 2 * 5, 6 * (14 + 3.0))
    assert load_of(stepper.step()[0]) == StepLoad(3, 3, 3, 6 + 6 + 21, 0.0)


def test_a_fit_finds_what_the_samples_were_made_with(model: StepTimeModel) -> None:
    found = (model.per_row_s, model.per_context_s, model.per_pair_s)
    assert found == pytest.approx((PER_ROW_S, PER_CONTEXT_S, PER_PAIR_S), rel=1e-6)
    assert fit_errors(model, profile_of(random_loads(500, 0))).p90 < 1e-6


def test_a_fit_finds_it_under_noise() -> None:
    """Of 3 % a sample, over 56 samples for 12 unknowns: 1 % is left where the loads are like those that were profiled."""
    rng = random.Random(1)
    noisy = profile_of(loads_to_profile() * 2, lambda load: true_seconds(load) * rng.lognormvariate(0, 0.03))
    model = StepTimeModel.fit(noisy)
    errors = fit_errors(model, profile_of(random_loads(500, 2)))
    assert errors.median < 0.015 and errors.p90 < 0.03
    assert model.per_context_s == pytest.approx(PER_CONTEXT_S, rel=0.1)
    assert model.per_pair_s == pytest.approx(PER_PAIR_S, rel=0.2)


def test_samples_that_were_held_up_count_for_little() -> None:
    """Every eighth took four times as long: least squares would be off by a third everywhere."""
    count = iter(range(10**6))
    held_up = profile_of(loads_to_profile(), lambda load: true_seconds(load) * (4 if next(count) % 8 == 3 else 1))
    errors = fit_errors(StepTimeModel.fit(held_up), profile_of(random_loads(500, 13)))
    assert errors.median < 0.02 and errors.p90 < 0.05


def test_a_factor_too_much_is_as_bad_as_the_same_factor_too_little() -> None:
    """Samples of a single kind take 1, 2 and 4 s, as many each: 2 s is as far from 1 as from 4."""
    seconds = iter([1.0, 2.0, 4.0] * 7)
    model = StepTimeModel.fit(profile_of([mixed(128)] * 21, lambda _: next(seconds)))
    assert model.seconds(mixed(128)) == pytest.approx(2.0, rel=0.01)


def test_f13_a_step_takes_as_long_as_its_bucket(model: StepTimeModel) -> None:
    # By hand: 7 ms + 20 us * 256 or 384, a row, and half the square of the tokens.
    assert model.seconds(mixed(256)) == pytest.approx(7e-3 + 5.12e-3 + 30e-6 + 4e-9 * 256**2 / 2)
    assert model.seconds(mixed(257)) == pytest.approx(7e-3 + 7.68e-3 + 30e-6 + 4e-9 * 257**2 / 2)
    assert model.seconds(decodes(17, 1)) == pytest.approx(5e-3 + 0.32e-3 + 17 * 30e-6 + 17 * 0.1e-6)


def test_sizes_that_were_not_profiled_lie_on_the_line_between() -> None:
    model = StepTimeModel.fit(profile_of(loads_to_profile((128, 512))))
    assert fit_errors(model, profile_of([mixed(300), mixed(384), mixed(500, 8, 100)])).p90 < 1e-6
    # Past the largest, in tiles: 700 tokens are 768.
    assert model.seconds(mixed(700)) == pytest.approx(7e-3 + 20e-6 * 768 + 30e-6 + 4e-9 * 700**2 / 2)
    # Below the smallest nothing is known of less time.
    assert model.seconds(mixed(32)) > true_seconds(mixed(32))


def test_steps_that_are_not_padded_go_by_tiles() -> None:
    loads = [mixed(size, cached=cached) for size in (128, 512) for cached in (0, 1000)]
    model = StepTimeModel.fit(profile_of([*loads, decodes(8, 9), decodes(8, 900)], decode_sizes=(), mixed_sizes=()))
    assert tile_sizes(513) == [*range(1, 129), 256, 384, 512]
    assert model.seconds(mixed(130)) == pytest.approx(7e-3 + 20e-6 * 256 + 30e-6 + 4e-9 * 130**2 / 2)


def test_a_kind_that_was_not_profiled_takes_the_other_ones_base() -> None:
    model = StepTimeModel.fit(profile_of(load for load in loads_to_profile() if not load.is_decode_only))
    assert model.seconds(decodes(32, 100)) == pytest.approx(7e-3 + 20e-6 * 32 + 32 * 30e-6 + 3200 * 0.1e-6)
    with pytest.raises(ConfigError, match="fitted to samples, got none: run `sarathi-jax bench profile`"):
        StepTimeModel.fit(profile_of([]))


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_no_more_work_is_said_to_take_less_time(seed: int) -> None:
    rng = random.Random(seed)
    wild = profile_of(rng.sample(loads_to_profile(), 12), lambda load: true_seconds(load) * rng.uniform(0.2, 5))
    model = StepTimeModel.fit(wild)
    assert min(model.per_row_s, model.per_context_s, model.per_pair_s) >= 0
    assert sorted(model.decode.seconds) == model.decode.seconds and sorted(model.mixed.seconds) == model.mixed.seconds
    chunks = [model.seconds(mixed(size, cached=100)) for size in range(2, 900, 7)]
    assert sorted(chunks) == chunks and chunks[0] > 0


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 20))
def test_least_squares_are_those_of_scipy(seed: int, num_columns: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(num_rows, num_columns)) * 10.0 ** rng.integers(-6, 6, num_columns)
    values = rng.normal(size=num_rows)
    found = _non_negative_least_squares(columns, values)
    assert found.min() >= 0
    _, residual = nnls(columns, values)
    assert np.linalg.norm(columns @ found - values) == pytest.approx(residual, rel=1e-6, abs=1e-9)


# ---- online


def run_steps(model: StepTimeModel, loads: Iterable[StepLoad], seconds: Callable[[StepLoad], float]) -> None:
    for load in loads:
        model.observe(load, seconds(load))


def errors_against(model: StepTimeModel, seconds: Callable[[StepLoad], float]) -> float:
    return fit_errors(model, profile_of(random_loads(300, 3), seconds)).median


def test_it_follows_a_machine_that_gets_slower(model: StepTimeModel) -> None:
    """By 1.5x, in steps that vary by 5 %: within 5 % after 100 steps, 2.5 % after 300."""
    rng = random.Random(4)

    def slower(load: StepLoad) -> float:
        return 1.5 * true_seconds(load) * rng.lognormvariate(0, 0.05)

    assert errors_against(model, lambda load: 1.5 * true_seconds(load)) == pytest.approx(1 / 3, abs=0.01)
    run_steps(model, random_loads(100, 5), slower)
    assert errors_against(model, lambda load: 1.5 * true_seconds(load)) < 0.05
    run_steps(model, random_loads(200, 6), slower)
    assert errors_against(model, lambda load: 1.5 * true_seconds(load)) < 0.025


def test_it_learns_of_one_size_without_losing_the_others(model: StepTimeModel) -> None:
    """Steps of the largest bucket take twice what the profile says, all others what it says."""

    def taken(load: StepLoad) -> float:
        return true_seconds(load) * (2 if load.num_tokens > 384 else 1)

    run_steps(model, random_loads(3000, 7), taken)
    assert errors_against(model, taken) < 0.03
    assert model.seconds(mixed(512)) == pytest.approx(taken(mixed(512)), rel=0.05)


def test_one_step_that_is_held_up_teaches_nothing(model: StepTimeModel) -> None:
    calm, shaken = model, copy.deepcopy(model)
    for index, load in enumerate([mixed(512), decodes(8, 100)] * 10):
        calm.observe(load, true_seconds(load))
        shaken.observe(load, true_seconds(load) * (50 if index == 10 else 1))
    for load in random_loads(20, 8):
        assert shaken.seconds(load) == calm.seconds(load)


def test_steps_that_are_held_up_in_a_row_teach_little(model: StepTimeModel) -> None:
    """A whole burst of five, 50 times as slow: at most 25 % of a lesson each, and soon forgotten."""
    run_steps(model, [mixed(512)] * 10, true_seconds)
    run_steps(model, [mixed(512)] * 5, lambda load: 50 * true_seconds(load))
    assert model.seconds(mixed(512)) < 1.25 * true_seconds(mixed(512))
    run_steps(model, [mixed(512)] * 20, true_seconds)
    assert model.seconds(mixed(512)) == pytest.approx(true_seconds(mixed(512)), rel=0.02)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_can_not_be_teach_nothing(model: StepTimeModel, seconds: float) -> None:
    before = model.seconds(mixed(512))
    run_steps(model, [mixed(512)] * 9, lambda _: seconds)
    assert model.seconds(mixed(512)) == before


def test_the_same_steps_teach_the_same(model: StepTimeModel) -> None:
    other = copy.deepcopy(model)
    rng, again = random.Random(9), random.Random(9)
    run_steps(model, random_loads(200, 10), lambda load: true_seconds(load) * rng.uniform(0.8, 3))
    run_steps(other, random_loads(200, 10), lambda load: true_seconds(load) * again.uniform(0.8, 3))
    assert [model.seconds(load) for load in random_loads(50, 11)] == [
        other.seconds(load) for load in random_loads(50, 11)
    ]


def test_it_costs_next_to_nothing(model: StepTimeModel) -> None:
    """2 us to say, 5 us to learn; the best of many runs, since others run on the machine too."""
    loads = random_loads(1000, 12)
    say_s, learn_s = [], []
    for _ in range(20):
        start_s = time.perf_counter()
        for load in loads:
            model.seconds(load)
        middle_s = time.perf_counter()
        for load in loads:
            model.observe(load, 0.01)
        learn_s.append(time.perf_counter() - middle_s)
        say_s.append(middle_s - start_s)
    assert min(say_s) / len(loads) < 2e-6 and min(learn_s) / len(loads) < 5e-6
