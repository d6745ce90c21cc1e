"""When requests arrive. Gaps are drawn once, with mean 1, and divided by the rate: at twice the rate the same requests arrive in half the time."""

from collections.abc import Sequence

import numpy as np

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.workloads import RequestShape


def with_poisson_arrivals(shapes: Sequence[RequestShape], requests_per_s: float, seed: int) -> list[RequestShape]:
    """The same requests in the same order, with exponential gaps between them; the first arrives at 0.

    Raises: ConfigError if the rate is not a positive number."""
    if not 0 < requests_per_s < float("inf"):
        raise ConfigError(f"request_rate must be above 0, got {requests_per_s}: leave it out to send all at once.")
    unit_gaps = np.random.default_rng([seed, 1]).standard_exponential(len(shapes) - 1)
    arrivals_s = [0.0, *(np.cumsum(unit_gaps) / requests_per_s).tolist()]
    return [shape._replace(arrival_s=arrival) for shape, arrival in zip(shapes, arrivals_s, strict=True)]
