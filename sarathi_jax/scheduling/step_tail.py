"""How much longer than said the slowest steps take: what a goal that 99 of 100 are to keep has to leave room for. Learned from the latest steps."""

from collections import deque

from sarathi_jax.scheduling.step_times import StepLoad, StepTimes

NUM_STEPS = 256
QUANTILE = 0.99
EVERY = 32  # steps between two looks at them
MAX_RATIO = 2.0  # a machine that is slower than that now and then has troubles that no budget cures


class StepTail:
    """ratio: the 99th percentile of measured over predicted times, from 1 to MAX_RATIO; 1 until there are enough of them.

    Predicted is what is said by now: a machine that has become slower, which `times` have learned, does not count twice.
    """

    def __init__(self, times: StepTimes) -> None:
        self.ratio = 1.0
        self._times = times
        self._steps: deque[tuple[StepLoad, float]] = deque(maxlen=NUM_STEPS)
        self._num_until_look = 2 * EVERY

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A step took so long. Times that are no positive numbers are of no step."""
        if not 0 < seconds < float("inf"):
            return
        self._steps.append((load, seconds))
        self._num_until_look -= 1
        if not self._num_until_look:
            self._num_until_look = EVERY
            ranked = sorted(seconds / self._times.seconds(load) for load, seconds in self._steps)
            self.ratio = min(max(1.0, ranked[int(QUANTILE * (len(ranked) - 1))]), MAX_RATIO)
