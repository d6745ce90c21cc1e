"""How much longer than said the slowest steps take: what a goal that 99 of 100 are to keep has to leave room for. Learned from the latest steps."""

from collections import deque

NUM_STEPS = 256
QUANTILE = 0.99
EVERY = 16  # steps between two looks at them
MAX_RATIO = 2.0  # a machine that is slower than that now and then has troubles that no budget cures


class StepTail:
    """ratio: the 99th percentile of measured over predicted times, from 1 to MAX_RATIO; 1 until there are enough of them."""

    def __init__(self) -> None:
        self.ratio = 1.0
        self._ratios: deque[float] = deque(maxlen=NUM_STEPS)
        self._num_until_look = NUM_STEPS // 4

    def observe(self, seconds: float, predicted_s: float) -> None:
        self._ratios.append(seconds / predicted_s)
        self._num_until_look -= 1
        if not self._num_until_look:
            self._num_until_look = EVERY
            ranked = sorted(self._ratios)
            self.ratio = min(max(ranked[int(QUANTILE * (len(ranked) - 1))], 1.0), MAX_RATIO)
