"""Workloads made to fit a model, and shared out over classes and clients."""

from collections import Counter

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.workloads import RequestShape, fit_within, with_classes, with_clients


def test_a_long_request_is_shrunk_in_both_parts_alike() -> None:
    shapes = [RequestShape(1.0, 60, 40), RequestShape(2.0, 150, 50, num_shared_tokens=90), RequestShape(3.0, 1000, 1)]
    # 200 tokens are twice too many; of 1001, the output keeps the one it has.
    fitting = [RequestShape(1.0, 60, 40), RequestShape(2.0, 75, 25, num_shared_tokens=75), RequestShape(3.0, 99, 1)]
    assert fit_within(shapes, 100) == fitting


def test_a_conversation_ends_before_the_round_that_is_too_long() -> None:
    shapes = [
        RequestShape(0.0, 10, 10),
        RequestShape(0.0, 30, 10, after=0),
        RequestShape(0.0, 5, 5),
        RequestShape(0.0, 90, 20, after=1),
        RequestShape(0.0, 15, 5, after=2),
        RequestShape(0.0, 120, 1, after=3),
    ]
    assert fit_within(shapes, 100) == [*shapes[:3], shapes[4]]


def test_places_of_earlier_rounds_follow_those_left_out() -> None:
    shapes = [RequestShape(0.0, 90, 10), RequestShape(0.0, 101, 1, after=0), RequestShape(0.0, 5, 5)]
    shapes += [RequestShape(0.0, 15, 5, after=2), RequestShape(0.0, 25, 5, after=3)]
    assert [shape.after for shape in fit_within(shapes, 100)] == [None, None, 1, 2]


def test_a_limit_leaves_room_for_a_prompt_and_an_output() -> None:
    assert fit_within([RequestShape(0.0, 8000, 100)], 2) == [RequestShape(0.0, 1, 1)]
    with pytest.raises(ConfigError, match="max_total_tokens must be at least 2, got 1"):
        fit_within([], 1)


def test_classes_have_their_shares_and_rounds_their_conversations() -> None:
    shapes = [RequestShape(0.0, 10, 5), RequestShape(0.0, 20, 5, after=0), RequestShape(0.0, 9, 9)] * 400
    shapes = [
        shape._replace(after=place - 1 if shape.after is not None else None) for place, shape in enumerate(shapes)
    ]
    shared = with_classes(shapes, {"interactive": 3, "batch": 1}, seed=0)
    assert [shape._replace(slo_class="") for shape in shared] == shapes
    # Exactly: 800 conversations, a quarter of them in batches.
    assert Counter(shape.slo_class for shape in shared if shape.after is None) == {"interactive": 600, "batch": 200}
    assert all(shape.slo_class == shared[shape.after].slo_class for shape in shared if shape.after is not None)


def test_classes_and_clients_are_drawn_apart_and_by_the_seed() -> None:
    shapes = [RequestShape(0.0, 10, 5)] * 1000
    both = with_clients(with_classes(shapes, {"a": 0.5, "b": 0.5}, seed=1), {"a": 0.5, "b": 0.5}, seed=1)
    # Independent halves: 250 of each pair; the standard deviation, of 500 drawn from 1000 without return, is 7.9.
    assert all(abs(count - 250) < 40 for count in Counter(shape[-2:] for shape in both).values())
    assert with_classes(shapes, {"a": 1, "b": 1}, seed=1) == [shape._replace(client_id="") for shape in both]
    assert with_classes(shapes, {"a": 1, "b": 1}, seed=1) != with_classes(shapes, {"a": 1, "b": 1}, seed=2)


@pytest.mark.parametrize("shares", [{}, {"a": 0.0}, {"a": 1.0, "b": -0.5}, {"a": float("nan")}])
def test_shares_are_above_zero(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="classes must each have a share above 0, got"):
        with_classes([RequestShape(0.0, 1, 1)], shares, seed=0)
