"""Conversations: their lengths beside the trace's, their rounds, and the limits."""

from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.chats import Chats
from sarathi_jax.simulation.lengths import Table
from sarathi_jax.simulation.workloads import RequestShape


def short(**options: Any) -> Chats:
    """Messages of 10 tokens, answers of 5."""
    return Chats(user_tokens=Table((0, 100), (10, 10)), output_tokens=Table((0, 100), (5, 5)), **options)


def first_rounds(shapes: list[RequestShape]) -> list[int]:
    return [place for place, shape in enumerate(shapes) if shape.after is None]


def test_f28_rounds_are_as_long_as_the_requests_of_table_2() -> None:
    shapes = Chats().draw(20_000, seed=0)
    prompts, outputs = np.array([shape[1:3] for shape in shapes]).T
    # Three parameters stand for the whole distribution of prompts: they meet the table's row, and the trace's means, within 5 %.
    assert [np.median(prompts), np.percentile(prompts, 90), prompts.std()] == pytest.approx(
        [1730, 5696, 2088], rel=0.05
    )
    assert [np.median(outputs), np.percentile(outputs, 90), outputs.std()] == pytest.approx([415, 834, 266], rel=0.02)
    assert [prompts.mean(), outputs.mean()] == pytest.approx([2340, 438.7], rel=0.02)
    assert (prompts + outputs).max() <= 8192


def test_f28_rounds_are_close_to_the_trace(chat_trace: NDArray[np.int64]) -> None:
    rounds = np.array([shape[1:3] for shape in Chats().draw(20_000, seed=0)]).T
    values = np.arange(1, 8193)
    for drawn, real in zip(rounds, chat_trace, strict=True):
        shares = [np.searchsorted(np.sort(side), values, side="right") / len(side) for side in (drawn, real)]
        # Nowhere do the two distribution functions differ by more than 2 in 100.
        assert np.abs(shares[0] - shares[1]).max() < 0.02


def test_every_round_repeats_the_one_before() -> None:
    shapes = Chats(num_system_tokens=100).draw(2000, seed=1)
    for place, shape in enumerate(shapes):
        if shape.after is not None:
            assert shape.after == place - 1
            assert shape.num_prompt_tokens > shapes[shape.after].num_tokens
            assert shape.num_shared_tokens == 0
        else:
            assert shape.num_prompt_tokens > shape.num_shared_tokens == 100
            assert shape.think_s == 0.0


def test_lengths_add_up_round_by_round() -> None:
    shapes = short(mean_rounds=50, num_system_tokens=7).draw(200, seed=0)[:3]
    assert [shape[1:3] for shape in shapes] == [(17, 5), (32, 5), (47, 5)]


def test_the_number_of_rounds_is_geometric() -> None:
    starts = first_rounds(short(mean_rounds=4.0).draw(20_000, seed=0))
    rounds = np.diff(starts)
    # Mean 4, a quarter with one round only; standard deviation sqrt(12), about 5,000 conversations: 5 standard errors are 0.25 and 0.031.
    assert rounds.mean() == pytest.approx(4.0, abs=0.25)
    assert (rounds == 1).mean() == pytest.approx(0.25, abs=0.031)


def test_pauses_are_exponential() -> None:
    pauses_s = np.array([shape.think_s for shape in Chats(mean_think_s=3.0).draw(13_000, 0) if shape.after is not None])
    # About 10,000 of them.
    assert pauses_s.mean() == pytest.approx(3.0, rel=0.05)
    assert pauses_s.std() == pytest.approx(3.0, rel=0.05)
    assert all(shape.think_s == 0 for shape in Chats(mean_think_s=0.0).draw(100, 0))


def test_one_round_each_is_a_workload_without_conversations() -> None:
    assert len(first_rounds(Chats(mean_rounds=1.0).draw(50, seed=0))) == 50


def test_a_conversation_ends_at_the_limit() -> None:
    shapes = short(mean_rounds=1e6, max_total_tokens=50).draw(7, seed=0)
    # Rounds of 15, 30 and 45 tokens.
    assert [shape.num_tokens for shape in shapes] == [15, 30, 45, 15, 30, 45, 15]
    assert [shape.after for shape in shapes] == [None, 0, 1, None, 3, 4, None]


def test_a_first_round_that_is_too_long_is_shrunk() -> None:
    (shape,) = short(max_total_tokens=9).draw(1, seed=0)
    assert (shape.num_prompt_tokens, shape.num_output_tokens) == (6, 3)


def test_the_seed_says_which_conversations() -> None:
    assert Chats().draw(30, seed=3) == Chats().draw(30, seed=3) != Chats().draw(30, seed=4)
    assert all(one == other for one, other in pairwise(Chats().draw(count, seed=3)[:10] for count in (10, 20, 30)))
    assert fmean(shape.arrival_s for shape in Chats().draw(30, seed=3)) == 0.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mean_rounds": 0.5}, "mean_rounds must be at least 1, got 0.5"),
        ({"mean_rounds": float("nan")}, "mean_rounds must be at least 1, got nan"),
        ({"mean_think_s": -1.0}, "mean_think_s must be 0 or more, got -1.0"),
        ({"num_system_tokens": 5000}, "at most half of max_total_tokens=8192, got 5000"),
        ({"max_total_tokens": 1}, "max_total_tokens must be at least 2, got 1"),
    ],
)
def test_wrong_conversations_are_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Chats(**options).draw(1, seed=0)  # pyright: ignore[reportArgumentType]


def test_a_workload_has_at_least_one_request() -> None:
    with pytest.raises(ConfigError, match="num_requests must be at least 1, got 0"):
        Chats().draw(0, seed=0)
