"""Stop strings: the cut is exact and depends on the text alone, whatever the deltas."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.text.stops import StopChecker

SHORT_TEXT = st.text("abE", max_size=25)
STOPS = st.lists(st.text("abE", min_size=1, max_size=4), min_size=1, max_size=4)


def run(deltas: list[str], stops: list[str], *, include_stop_str: bool = False) -> tuple[list[str], str | None]:
    checker = StopChecker(stops, include_stop_str=include_stop_str)
    shown = [checker.push(delta) for delta in deltas]
    return [*shown, checker.finish()], checker.matched


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first stop string that is completed, the longest of several."""
    for end in range(1, len(text) + 1):
        if ended := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(ended, key=len)
            return text[: end - len(stop)], stop
    return text, None


def split(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


@given(text=SHORT_TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 25), max_size=8))
@settings(max_examples=1000, deadline=None)
def test_the_cut_depends_on_the_text_alone(text: str, stops: list[str], cuts: list[int]) -> None:
    shown, matched = run(split(text, cuts), stops)
    assert ("".join(shown), matched) == expected(text, stops)


@given(text=SHORT_TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 25), max_size=8))
@settings(max_examples=500, deadline=None)
def test_with_the_stop_string_the_text_ends_with_it(text: str, stops: list[str], cuts: list[int]) -> None:
    shown, matched = run(split(text, cuts), stops, include_stop_str=True)
    cut, stop = expected(text, stops)
    assert ("".join(shown), matched) == (cut + (stop or ""), stop)


@given(text=SHORT_TEXT, stops=STOPS)
@settings(max_examples=500, deadline=None)
def test_what_is_held_back_is_exactly_what_a_stop_string_could_swallow(text: str, stops: list[str]) -> None:
    checker = StopChecker(stops)
    for index, character in enumerate(text):
        checker.push(character)
        if checker.matched:
            return
        seen = text[: index + 1]
        num_held = max(length for stop in stops for length in range(len(stop)) if seen.endswith(stop[:length]))
        assert checker.finish() == seen[len(seen) - num_held :]
        checker.push(seen[len(seen) - num_held :])


def test_a_stop_string_across_deltas_never_shows() -> None:
    assert run(["one E", "N", "D two"], ["END"]) == (["one ", "", "", ""], "END")


def test_a_false_start_comes_out_late_and_whole() -> None:
    assert run(["one E", "N", "ds"], ["END"]) == (["one ", "", "ENds", ""], None)


def test_the_text_held_back_comes_out_at_the_end() -> None:
    assert run(["one EN"], ["END"]) == (["one ", "EN"], None)


def test_nothing_comes_after_a_match() -> None:
    assert run(["aENDb", "c"], ["END"]) == (["a", "", ""], "END")


@pytest.mark.parametrize("stops", [[], ["z"]])
def test_without_a_match_the_deltas_pass_as_they_are(stops: list[str]) -> None:
    assert run(["a", "", "b"], stops) == (["a", "", "b", ""], None)
