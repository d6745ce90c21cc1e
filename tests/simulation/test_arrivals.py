"""When requests arrive."""

import numpy as np
import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.arrivals import with_poisson_arrivals
from sarathi_jax.simulation.lengths import Synthetic


def test_poisson_arrivals_keep_order_and_rate() -> None:
    shapes = with_poisson_arrivals(Synthetic().draw(10001, seed=0), 50.0, seed=0)
    gaps_s = np.diff([shape.arrival_s for shape in shapes])
    assert shapes[0].arrival_s == 0.0
    assert np.all(gaps_s >= 0)
    # Exponential: mean and standard deviation are both 1 / rate; 10,000 gaps, so 5 standard errors are 5 %.
    assert gaps_s.mean() == pytest.approx(0.02, rel=0.05)
    assert gaps_s.std() == pytest.approx(0.02, rel=0.05)


def test_at_another_rate_the_same_gaps_are_scaled() -> None:
    shapes = Synthetic(distribution="uniform").draw(100, seed=0)
    slow, fast = (with_poisson_arrivals(shapes, rate, seed=7) for rate in (1.0, 4.0))
    assert [shape[1:] for shape in slow] == [shape[1:] for shape in fast] == [shape[1:] for shape in shapes]
    # A quarter is exact in binary.
    assert [shape.arrival_s for shape in fast] == [shape.arrival_s / 4 for shape in slow]
    assert slow != with_poisson_arrivals(shapes, 1.0, seed=8)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_is_a_positive_number(rate: float) -> None:
    with pytest.raises(ConfigError, match="request_rate must be above 0, got"):
        with_poisson_arrivals(Synthetic().draw(2, seed=0), rate, seed=0)
