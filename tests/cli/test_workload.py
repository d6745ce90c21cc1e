"""Synthetic lengths, traces and arrivals."""

from pathlib import Path

import numpy as np
import pytest

from sarathi_jax.cli.workload import RequestShape, Synthetic, random_prompts, read_trace, with_poisson_arrivals
from sarathi_jax.errors import ConfigError


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


def test_poisson_arrivals_keep_order_and_rate() -> None:
    shapes = with_poisson_arrivals(Synthetic().draw(10001, seed=0), 50.0, seed=0)
    gaps_s = np.diff([shape.arrival_s for shape in shapes])
    assert shapes[0].arrival_s == 0.0
    assert np.all(gaps_s >= 0)
    # Exponential: mean and standard deviation are both 1 / rate; 10,000 gaps, so 5 standard errors are 5 %.
    assert gaps_s.mean() == pytest.approx(0.02, rel=0.05)
    assert gaps_s.std() == pytest.approx(0.02, rel=0.05)


def test_random_prompts_have_their_lengths_and_ids_in_the_vocabulary() -> None:
    prompts = random_prompts([3, 200], vocab_size=13, seed=0)
    assert [len(prompt) for prompt in prompts] == [3, 200]
    assert set(prompts[1]) == set(range(13))


def trace(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_read_by_arrival_whatever_its_columns_order(tmp_path: Path) -> None:
    path = trace(tmp_path, "output_tokens,arrival_s,prompt_tokens,note\n3,2.5,7,late\n1,0,9,first\n2,9,9,last\n")
    assert read_trace(path) == [RequestShape(0.0, 9, 1), RequestShape(2.5, 7, 3), RequestShape(9.0, 9, 2)]
    assert read_trace(path, max_requests=1) == [RequestShape(0.0, 9, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,prompt,output_tokens\n0,1,1\n", "got arrival_s,prompt,output_tokens: add prompt_tokens."),
        ("", "must have columns arrival_s,prompt_tokens,output_tokens, got none"),
        ("arrival_s,prompt_tokens,output_tokens\n", "must have rows, got only a header"),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,1,1\n-1,2,3\n",
            "line 3 of the trace .* got -1,2,3: mend that line.",
        ),
        ("arrival_s,prompt_tokens,output_tokens\nnan,2,3\n", "line 2 of the trace .* got nan,2,3"),
        ("arrival_s,prompt_tokens,output_tokens\n0,2.5,3\n", "line 2 of the trace .* got 0,2.5,3"),
        ("arrival_s,prompt_tokens,output_tokens\n0,2\n", "line 2 of the trace .* got 0,2,None"),
    ],
)
def test_a_wrong_trace_is_refused_by_name_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_trace(trace(tmp_path, text))
