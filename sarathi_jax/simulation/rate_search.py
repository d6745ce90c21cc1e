"""The search for the highest rate of requests that keeps a goal, whoever tries the rates: the simulator, or a client of a server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_TRIALS = 40
MAX_FACTOR = 2.0**16  # from the guess to the last rate that is tried
GRANULARITY = 0.025
ROUNDING = 1e-9  # a ratio that is the granularity by construction comes out a few times 1e-16 beside it


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate. is_cut_short: stopped as soon as it could not hold any more; its numbers are of what had been served by then."""

    requests_per_s: float
    does_hold: bool
    is_cut_short: bool
    p99_tbt_s: float
    median_delay_s: float
    median_ttft_s: float
    p99_ttft_s: float
    backlog_drift: float
    num_unfinished: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """requests_per_s: the highest rate that held, 0 if none did, infinity if all did: with so few requests that they may come at once. at: the trial at it, or the
    last that was made. trials: all, in the order they were made."""

    requests_per_s: float
    at: Trial | None
    trials: Sequence[Trial]


def find_capacity(
    trial_at: Callable[[float], Trial], *, guess: float = 1.0, granularity: float = GRANULARITY, step: float = 2.0
) -> Capacity:
    """The highest rate that holds: away from the guess until one holds and one does not, then halved in ratio until the two are close.

    trial_at: requests a second -> trial; the same requests each time, so that only the rate differs.
    granularity: how far the rate that does not hold is above the one that does, as a share, at most.
    step: the first factor away from the guess, squared at each further one, and at most 2: little for a guess that is good.
    """
    trials: list[Trial] = []
    held: Trial | None = None
    low, high, rate = 0.0, float("inf"), guess
    while len(trials) < MAX_TRIALS and not (low and high <= low * (1 + granularity + ROUNDING)):
        trial = trial_at(rate)
        trials.append(trial)
        if trial.does_hold:
            low, held = rate, trial
        else:
            high = rate
        if not low and rate < guess / MAX_FACTOR:
            break  # nothing holds: as with an SLO below the time of a single step
        if high == float("inf") and rate > guess * MAX_FACTOR:
            low = high
            break
        if low and high < float("inf"):
            rate = (low * high) ** 0.5
        else:
            rate = low * step if low else high / step
            step = min(step**2, 2.0)
    return Capacity(low, held, trials)
