"""What came of a simulated run, by the definitions in docs/metrics.md: when each request was served, and what that comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sarathi_jax.engine.records import StepRecord


class RequestTimes(NamedTuple):
    """One request: when it arrived, was first scheduled (None: not yet), and got each token."""

    arrival_s: float
    first_scheduled_s: float | None
    token_times_s: Sequence[float]
    num_prompt_tokens: int
    is_finished: bool
    num_prefix_hit_tokens: int = 0
    num_preemptions: int = 0

    @property
    def ttft_s(self) -> float:
        """Raises: IndexError if it got no token."""
        return self.token_times_s[0] - self.arrival_s


@dataclass(frozen=True)
class SimulationResult:
    """requests: those that arrived, in that order. end_s: when the run ended. idle_s: of all stages between their first and last microbatch. num_absent:
    requests that had not arrived when the run was stopped."""

    requests: Sequence[RequestTimes]
    steps: Sequence[StepRecord]
    end_s: float
    idle_s: float
    num_absent: int = 0

    @cached_property
    def ttft_s(self) -> np.ndarray:
        """f64[requests that got a token]."""
        return np.array([each.ttft_s for each in self.requests if each.token_times_s])

    @cached_property
    def tbt_s(self) -> np.ndarray:
        """f64[gaps of all requests], pooled."""
        times_s = np.concatenate([np.asarray(each.token_times_s, np.float64) for each in self.requests] or [[]])
        num_before = np.cumsum([len(each.token_times_s) for each in self.requests])  # tokens up to each request's end
        is_gap = np.ones(max(len(times_s) - 1, 0), bool)
        is_gap[num_before[(num_before > 0) & (num_before < len(times_s))] - 1] = (
            False  # from one request's last to another's first
        )
        return np.diff(times_s)[is_gap]

    @cached_property
    def scheduling_delay_s(self) -> np.ndarray:
        """f64[requests]; those that were never scheduled have waited until the end."""
        return np.array(
            [
                (self.end_s if each.first_scheduled_s is None else each.first_scheduled_s) - each.arrival_s
                for each in self.requests
            ]
        )

    @property
    def num_unfinished(self) -> int:
        """Absent ones included."""
        return self.num_absent + sum(not each.is_finished for each in self.requests)

    @property
    def backlog_drift(self) -> float:
        """Time from the first arrival to the last token, over the time in which requests arrived: above 1 by how far serving fell behind."""
        arrivals = [each.arrival_s for each in self.requests]
        span_s = max(arrivals) - min(arrivals)
        return (self.end_s - min(arrivals)) / span_s if span_s else float("inf")

    @property
    def num_output_tokens(self) -> int:
        return sum(len(each.token_times_s) for each in self.requests)
