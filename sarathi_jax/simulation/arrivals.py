"""When requests arrive: times for those that wait for nobody, and a queue that lets each round of a conversation follow the end of the one before.

Gaps are drawn once, with mean 1, and divided by the rate: at twice the rate the same requests arrive in half the time.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.workloads import RequestShape

PROCESSES = ("poisson", "gamma", "uniform", "own")


def with_arrivals(
    shapes: Sequence[RequestShape],
    requests_per_s: float,
    seed: int,
    process: str = "poisson",
    gap_variation: float = 1.0,
) -> list[RequestShape]:
    """The same requests in the same order, with other times; the first arrives at 0.

    Args:
      requests_per_s: on average; where there are conversations they start more rarely, so that all rounds together come to it.
      process: `poisson`: exponential gaps; `gamma`: gaps with the coefficient of variation `gap_variation` (1 is Poisson, above are bursts); `uniform`: all
        gaps alike; `own`: the times that the requests have, stretched to the rate.
    Raises: ConfigError.
    """
    if not 0 < requests_per_s < float("inf"):
        raise ConfigError(f"request_rate must be above 0, got {requests_per_s}: leave it out to send all at once.")
    if not shapes:
        return []
    own_s = np.array([shape.arrival_s for shape in shapes if shape.after is None])
    if process == "own":
        starts = _own_starts(own_s)
    else:
        starts = np.cumsum([0.0, *_unit_gaps(process, gap_variation, len(own_s) - 1, seed)])
    starts_s = iter((starts * (len(shapes) / len(own_s) / requests_per_s)).tolist())
    arrivals_s: list[float] = []
    for shape in shapes:
        if shape.after is None:
            arrivals_s.append(next(starts_s))
        else:
            arrivals_s.append(arrivals_s[shape.after] + shape.arrival_s - shapes[shape.after].arrival_s)
    return [shape._replace(arrival_s=arrival) for shape, arrival in zip(shapes, arrivals_s, strict=True)]


def with_poisson_arrivals(shapes: Sequence[RequestShape], requests_per_s: float, seed: int) -> list[RequestShape]:
    """`with_arrivals` of the paper's evaluation. Raises: ConfigError if the rate is not a positive number."""
    return with_arrivals(shapes, requests_per_s, seed)


def _unit_gaps(process: str, variation: float, count: int, seed: int) -> NDArray[np.float64]:
    """Gaps with mean 1."""
    rng = np.random.default_rng([seed, 1])
    if process == "poisson":
        return rng.standard_exponential(count)
    if process == "uniform":
        return np.ones(count)
    if process != "gamma":
        raise ConfigError(f"arrivals must be one of {', '.join(PROCESSES)}, got {process}: choose one.")
    if not 0.01 <= variation <= 100:
        raise ConfigError(f"gap_variation must be between 0.01 and 100, got {variation}: 1 is Poisson.")
    return rng.standard_gamma(variation**-2, count) * variation**2


def _own_starts(own_s: NDArray[np.float64]) -> NDArray[np.float64]:
    span_s = own_s.max() - own_s.min()
    if not span_s > 0:
        raise ConfigError("arrivals of the requests' own need different times, got all at once: choose poisson.")
    return (own_s - own_s.min()) * ((len(own_s) - 1) / span_s)


def at_rate(shapes: Sequence[RequestShape], requests_per_s: float) -> list[RequestShape]:
    """A workload of one request a second, drawn together or apart: the same requests at another rate, think times as they are."""
    return [shape._replace(arrival_s=shape.arrival_s / requests_per_s) for shape in shapes]


class ArrivalQueue:
    """Requests by when they arrive. Tell it of every end, and the next round comes in.

    A run goes on while the queue holds somebody or the engine works: rounds that wait for an end are not held yet, and those after one that was refused or
    aborted never come.

    shapes: in any order.

    next_arrival_s: infinity if nobody is on the way."""

    def __init__(self, shapes: Sequence[RequestShape]) -> None:
        self._shapes = shapes
        self._arrivals = [(shape.arrival_s, place) for place, shape in enumerate(shapes) if shape.after is None]
        heapq.heapify(self._arrivals)
        self._look()
        self._next_rounds: defaultdict[int, list[int]] = defaultdict(list)
        for place, shape in enumerate(shapes):
            if shape.after is not None:
                self._next_rounds[shape.after].append(place)

    def __len__(self) -> int:
        return len(self._arrivals)

    def pop(self) -> tuple[float, int]:
        """Take the next one out. Returns: seconds at which it arrives, and its place in the workload. Raises: IndexError if there is none."""
        arrival = heapq.heappop(self._arrivals)
        self._look()
        return arrival

    def end(self, place: int, now_s: float) -> None:
        """The last token of a request came: the next round arrives after its pause, and not before its own time."""
        for follower in self._next_rounds.pop(place, ()):
            shape = self._shapes[follower]
            heapq.heappush(self._arrivals, (max(shape.arrival_s, now_s + shape.think_s), follower))
            self._look()

    def _look(self) -> None:
        self.next_arrival_s = self._arrivals[0][0] if self._arrivals else float("inf")
