"""Clocks: the virtual one stands still and moves only forward; the wall clock never runs backwards."""

import math

import pytest

from sarathi_jax.clock import VirtualClock, WallClock


def test_virtual_clock_stands_still_until_moved() -> None:
    clock = VirtualClock(start_s=2.0)
    assert [clock.now(), clock.now()] == [2.0, 2.0]
    clock.advance(0.5)
    assert clock.now() == 2.5


@pytest.mark.parametrize("duration_s", [-0.1, math.nan])
def test_virtual_clock_refuses_to_go_back(duration_s: float) -> None:
    with pytest.raises(ValueError, match=r"duration_s must be >= 0, got .*: a clock only moves forward\."):
        VirtualClock().advance(duration_s)


def test_wall_clock_is_monotonic() -> None:
    readings = [WallClock().now() for _ in range(1000)]
    assert readings == sorted(readings)
    assert readings[0] < readings[-1]
