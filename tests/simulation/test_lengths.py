"""Lengths beside what their distributions say: simple ones, and the paper's two beside its Table 2 and the trace that its authors published."""

from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.lengths import ARXIV, FITTED, SHAREGPT, Fitted, Synthetic, Table
from sarathi_jax.simulation.workloads import RequestShape


def test_fixed_lengths_are_the_longest() -> None:
    assert Synthetic(max_prompt_tokens=5, max_output_tokens=3).draw(2, seed=0) == [RequestShape(0.0, 5, 3)] * 2


def test_uniform_lengths_reach_both_ends_alike() -> None:
    shapes = Synthetic(distribution="uniform", max_prompt_tokens=4, max_output_tokens=1).draw(4000, seed=0)
    counts = np.bincount([shape.num_prompt_tokens for shape in shapes], minlength=5)
    assert counts[0] == 0
    # 1000 each; the standard deviation of a count is 27, so 5 of them: fails by chance once in a million seeds.
    assert np.all(abs(counts[1:] - 1000) < 137)


def test_zipf_lengths_fall_off_as_the_power_says() -> None:
    zipf = Synthetic(distribution="zipf", max_prompt_tokens=3, max_output_tokens=1, zipf_theta=1.0)
    counts = np.bincount([shape.num_prompt_tokens for shape in zipf.draw(11000, seed=0)], minlength=4)
    # 1, 1/2 and 1/3 of 11/6: 6000, 3000 and 2000; 5 standard deviations of the first are 261.
    assert np.all(abs(counts - [0, 6000, 3000, 2000]) < 261)


def test_a_seed_gives_the_same_workload_and_another_seed_another() -> None:
    uniform = Synthetic(distribution="uniform")
    assert uniform.draw(20, seed=3) == uniform.draw(20, seed=3)
    assert uniform.draw(20, seed=3) != uniform.draw(20, seed=4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"distribution": "normal"}, "lengths must be one of fixed, uniform, zipf, got normal"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens must be at least 1, got 0"),
        ({"max_output_tokens": -1}, "max_output_tokens must be at least 1, got -1"),
        ({"zipf_theta": float("nan")}, "zipf_theta must be between 0 and 10, got nan"),
    ],
)
def test_wrong_lengths_are_refused(options: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Synthetic(**options)  # pyright: ignore[reportArgumentType]


def lengths(fitted: Fitted, num_requests: int, seed: int = 0) -> NDArray[np.int64]:
    """[2, n]: prompts and outputs."""
    return np.array([shape[1:3] for shape in fitted.draw(num_requests, seed)]).T


def summary(tokens: NDArray[np.int64]) -> list[float]:
    """As Table 2: median, 90th percentile, standard deviation."""
    return [float(np.median(tokens)), float(np.percentile(tokens, 90)), float(tokens.std())]


# Table 2 of the paper; the outputs' standard deviations stand in each other's row there (the trace that is public says which is whose).
TABLE_2 = {
    "sharegpt": ([1730, 5696, 2088], [415, 834, 266], 8192),
    "arxiv": ([7059, 12985, 3638], [208, 371, 101], 16384),
}


@pytest.mark.parametrize("name", TABLE_2)
@pytest.mark.parametrize("seed", [0, 1])
def test_f28_lengths_are_those_of_table_2(name: str, seed: int) -> None:
    prompts, outputs = lengths(FITTED[name], 20_000, seed)
    expected_prompts, expected_outputs, max_total_tokens = TABLE_2[name]
    # The fits meet the table within half a percent; one in a hundred is left for the draw.
    assert summary(prompts) == pytest.approx(expected_prompts, rel=0.015)
    assert summary(outputs) == pytest.approx(expected_outputs, rel=0.015)
    assert (prompts + outputs).max() <= max_total_tokens
    assert min(prompts.min(), outputs.min()) >= 1


def test_f28_chat_lengths_have_the_means_and_the_correlation_of_the_trace() -> None:
    prompts, outputs = lengths(SHAREGPT, 20_000)
    # Throughput follows the means: 2340.0 and 438.7 in the trace. Its correlation coefficient is 0.041; a standard error here is 1 / sqrt(20,000).
    assert prompts.mean() == pytest.approx(2340.0, rel=0.01)
    assert outputs.mean() == pytest.approx(438.7, rel=0.01)
    assert np.corrcoef(prompts, outputs)[0, 1] == pytest.approx(0.041, abs=4 * 0.0071)
    assert (prompts.min(), prompts.max()) == (pytest.approx(1, abs=2), pytest.approx(8141, abs=20))
    assert (outputs.min(), outputs.max()) == (pytest.approx(2, abs=2), pytest.approx(1024, abs=2))


def test_f28_chat_lengths_are_close_to_the_trace_everywhere(chat_trace: NDArray[np.int64]) -> None:
    for drawn, real in zip(lengths(SHAREGPT, 20_000), chat_trace, strict=True):
        ordered, values = np.sort(real), np.arange(1, 8193)
        shares = [np.searchsorted(np.sort(side), values, side="right") / len(side) for side in (drawn, ordered)]
        # The largest distance between the two distribution functions: 999 in 1000 pairs of samples of one distribution, this large, stay below
        # 1.95 * sqrt(1 / 20,000 + 1 / 30,731) = 0.0177.
        assert np.abs(shares[0] - shares[1]).max() < 0.0177


def test_f28_chat_totals_are_close_to_the_trace(chat_trace: NDArray[np.int64]) -> None:
    percents = [1, 5, 10, 25, 50, 75, 90, 95, 99]
    drawn, real = (np.percentile(pairs.sum(axis=0), percents) for pairs in (lengths(SHAREGPT, 20_000), chat_trace))
    # What prompt and output are together, which neither of them says alone.
    assert drawn[2:] == pytest.approx(real[2:], rel=0.04)


def test_means_hardly_vary_from_seed_to_seed() -> None:
    means = [lengths(SHAREGPT, 2048, seed).mean(axis=1) for seed in range(5)]
    # Independent draws would vary by 2089 / sqrt(2048) = 46 and 266 / sqrt(2048) = 5.9 tokens.
    assert np.all(np.std(means, axis=0) < [2, 1])


def test_a_table_is_read_along_straight_lines() -> None:
    quantiles = Table((0, 50, 100), (10, 20, 60))
    assert quantiles(np.array([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == [10, 15, 20, 40, 60]


type Side = Literal["prompts", "outputs"]


@pytest.mark.parametrize(("redrawn", "kept"), [("prompts", "outputs"), ("outputs", "prompts")])
def test_the_limit_is_kept_by_one_of_the_two(redrawn: Side, kept: Side) -> None:
    flat = Table((0, 100), (0, 100))
    fitted = Fitted(prompts=flat, outputs=flat, correlation=0.0, max_total_tokens=120, redrawn=redrawn)
    prompts, outputs = lengths(fitted, 4000)
    drawn = {"prompts": prompts, "outputs": outputs}
    assert (prompts + outputs).max() == 120
    # The kept one is even over 0 to 100. The other, given k, is even up to min(100, 120 - k): its mean is that of 50 for a fifth and 10 to 50 for the rest.
    assert drawn[kept].mean() == pytest.approx(50, rel=0.01)
    assert drawn[redrawn].mean() == pytest.approx(0.2 * 50 + 0.8 * 30, rel=0.03)


@pytest.mark.parametrize("fitted", [SHAREGPT, ARXIV])
def test_fitted_lengths_follow_the_seed(fitted: Fitted) -> None:
    assert fitted.draw(50, seed=3) == fitted.draw(50, seed=3)
    assert fitted.draw(50, seed=3) != fitted.draw(50, seed=4)
    assert len(fitted.draw(1, seed=0)) == 1
    with pytest.raises(ConfigError, match="num_requests must be at least 1, got 0"):
        fitted.draw(0, seed=0)
