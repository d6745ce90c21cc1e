"""How long a step takes, said before it is run: from what it holds, by a model that is fitted to a profile and goes on learning from the steps that are run.

    seconds = ratio * (base(tokens) + a rows + b decode_context + c chunk_pairs)

The base is a table, one for steps of decodes alone and one for all others: a step takes as long as the size that it is padded to, a compiled bucket's or whole
tiles of 128 tokens. Sizes that were not profiled lie on the line between those that were. The other three terms are what attention and sampling come to, as in
section 6 of Vidur (arXiv 2405.05465) with one number each; all are at least 0, so that no more work is ever said to take less time.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from sarathi_jax.config import TOKEN_TILE
from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.step_rows import chunk_rows, decode_context

if TYPE_CHECKING:
    from sarathi_jax.scheduling.step_profile import StepProfile, StepSample

# Of what the middle one of a size's last three steps took more or less than was said, so much is learned at each step: for all sizes, and for that one besides.
COMMON_RATE = 0.1
SIZE_RATE = 0.05
MAX_FITS, USUAL_ERROR = 50, 0.05
MIN_SECONDS = 1e-9  # of a base: a logarithm is taken
MAX_LESSON = 0.25  # of the logarithm; what goes beyond is no drift, or shows again at the next step


class StepLoad(NamedTuple):
    """What a step's time depends on. Rows of one token count as decodes, whatever their request calls them, as they do in `Schedule`.

    decode_context: tokens that the decodes attend to, summed over them, their own included.
    chunk_pairs: pairs of a query and a key it sees, summed over longer rows: c (k + c/2) for c new tokens after k.
    """

    num_tokens: int
    num_rows: int
    num_decodes: int
    decode_context: int
    chunk_pairs: float

    @property
    def is_decode_only(self) -> bool:
        return self.num_decodes == self.num_tokens


def load_of(schedule: Schedule) -> StepLoad:
    """What a schedule comes to."""
    num_decodes, pairs = schedule.num_decode_rows, 0.0
    for row in chunk_rows(schedule):
        pairs += row.num_tokens * (row.start + row.num_tokens / 2)
    context = decode_context(schedule)
    return StepLoad(schedule.num_tokens, len(schedule.rows), num_decodes, context, pairs)


class StepTimes(Protocol):
    """Says what steps take: on an idle machine, from when one could begin until its tokens are on the host."""

    def seconds(self, load: StepLoad) -> float: ...


class LearningStepTimes(StepTimes, Protocol):
    """Step times that follow those that are measured."""

    def observe(self, load: StepLoad, seconds: float) -> None: ...


class BaseTimes:
    """The base of one kind of step, by size, and what its sizes took against what was said of them.

    Args:
      sizes: ascending, that steps are padded to. profiled: (size, seconds) of some of them, both ascending; others are interpolated.
    """

    __slots__ = ("factors", "groups", "log_ratios", "per_token_s", "recent", "seconds", "sizes")

    def __init__(self, sizes: Sequence[int], profiled: Sequence[tuple[int, float]]) -> None:
        knots, seconds = [size for size, _ in profiled], [each for _, each in profiled]
        self.sizes = sorted({*(size for size in sizes if size < knots[-1]), *knots})
        self.seconds: list[float] = np.maximum(np.interp(self.sizes, knots, seconds), MIN_SECONDS).tolist()
        size, rise = (knots[-1] - knots[-2], seconds[-1] - seconds[-2]) if len(knots) > 1 else (knots[0], seconds[0])
        self.per_token_s = rise / size  # beyond the largest size
        # What is learned of a profiled size holds for those below it too, down to the next.
        self.groups = [bisect_left(knots, size) for size in self.sizes]
        self.log_ratios = [0.0] * len(knots)
        self.factors = [1.0] * len(knots)
        self.recent = [deque[float](maxlen=3) for _ in knots]

    def at(self, num_tokens: int) -> tuple[float, int]:
        """Seconds, and the number of the profiled size that they stand for."""
        index = bisect_left(self.sizes, num_tokens)
        if index < len(self.sizes):
            return self.seconds[index], self.groups[index]
        beyond = tile_rounded(num_tokens) - self.sizes[-1]
        return self.seconds[-1] + beyond * self.per_token_s, self.groups[-1]


class StepTimeModel:
    """Step times of one engine on one machine: fitted once, then kept right by `observe`. The same observations in the same order give the same answers.

    per_row_s, per_context_s, per_pair_s: of the terms above, as fitted.
    """

    def __init__(
        self, decode: BaseTimes, mixed: BaseTimes, *, per_row_s: float, per_context_s: float, per_pair_s: float
    ) -> None:
        self.decode = decode
        self.mixed = mixed
        self.per_row_s = per_row_s
        self.per_context_s = per_context_s
        self.per_pair_s = per_pair_s
        self._log_ratio = 0.0
        self._factor = 1.0

    @classmethod
    def guess(cls) -> "StepTimeModel":
        """Before anything was measured: 1 ms, and 0.1 ms a token. It is for `observe` to put right."""
        line = [(1, 1e-3), (8192, 1e-3 + 8192 * 1e-4)]
        sizes = tile_sizes(8192)
        return cls(BaseTimes(sizes, line), BaseTimes(sizes, line), per_row_s=0.0, per_context_s=0.0, per_pair_s=0.0)

    @classmethod
    def fit(cls, profile: "StepProfile") -> "StepTimeModel":
        """The model that is off by the smallest factors over a profile's samples (`_robust_fit`). Raises: ConfigError if there are none."""
        if not profile.samples:
            raise ConfigError("Step times must be fitted to samples, got none: run `sarathi-jax bench profile`.")
        padded_sizes = (profile.decode_sizes, profile.mixed_sizes)
        kinds = [int(not each.load.is_decode_only) for each in profile.samples]
        keys = np.array(
            [
                (kind, padded_size(each.num_tokens, padded_sizes[kind]))
                for kind, each in zip(kinds, profile.samples, strict=True)
            ]
        )
        knots = np.unique(keys, axis=0)
        found = _robust_fit(_terms(profile.samples, keys, knots), np.array([each.median_s for each in profile.samples]))
        tables = []
        for kind in (0, 1):
            is_of_kind = knots[:, 0] == kind
            seconds = np.cumsum(found[:-3][is_of_kind]).tolist()
            tables.append(list(zip(knots[is_of_kind, 1].tolist(), seconds, strict=True)))
        # Where one kind was not profiled, the other one's base is the best guess.
        decode, mixed = (
            BaseTimes(sizes or tile_sizes(table[-1][0]), table)
            for sizes, table in zip(padded_sizes, (tables[0] or tables[1], tables[1] or tables[0]), strict=True)
        )
        per_row_s, per_context_s, per_pair_s = found[-3:].tolist()
        return cls(decode, mixed, per_row_s=per_row_s, per_context_s=per_context_s, per_pair_s=per_pair_s)

    @property
    def log_ratio(self) -> float:
        """Of `ratio`, as it is kept."""
        return self._log_ratio

    def resume(self, log_ratio: float, ratio: float) -> None:
        """Go on from what was learned of all sizes."""
        self._log_ratio, self._factor = log_ratio, ratio

    @property
    def ratio(self) -> float:
        """What steps of all sizes take, over what they took in the profile."""
        return self._factor

    def seconds(self, load: StepLoad) -> float:
        """What a step will take."""
        seconds, base, group = self._fitted(load)
        return seconds * self._factor * base.factors[group]

    def observe(self, load: StepLoad, seconds: float) -> None:
        """Learn from a step that was run; one that was held up by something else teaches nothing.

        Args:
          seconds: from when the step could begin, the one before it being done, until its tokens were on the host.
        """
        if not 0 < seconds < math.inf:
            return
        fitted_s, base, group = self._fitted(load)
        recent = base.recent[group]
        recent.append(math.log(seconds / fitted_s))
        if len(recent) < 3:
            return
        lesson = sorted(recent)[1] - self._log_ratio - base.log_ratios[group]
        lesson = min(max(lesson, -MAX_LESSON), MAX_LESSON)
        self._log_ratio += COMMON_RATE * lesson
        self._factor = math.exp(self._log_ratio)
        base.log_ratios[group] += SIZE_RATE * lesson
        base.factors[group] = math.exp(base.log_ratios[group])

    def _fitted(self, load: StepLoad) -> tuple[float, BaseTimes, int]:
        """Seconds as in the profile, and where they come from."""
        num_tokens, num_rows, num_decodes, decode_context, chunk_pairs = load
        base = self.decode if num_decodes == num_tokens else self.mixed
        seconds, group = base.at(num_tokens)
        seconds += self.per_row_s * num_rows + self.per_context_s * decode_context + self.per_pair_s * chunk_pairs
        return seconds, base, group


class FitErrors(NamedTuple):
    """How far predictions are from a profile's medians, as shares of these."""

    median: float
    p90: float


def fit_errors(times: StepTimes, profile: "StepProfile") -> FitErrors:
    """Over all samples. Raises: StatisticsError if there are none."""
    errors = [abs(times.seconds(each.load) / each.median_s - 1) for each in profile.samples]
    return FitErrors(median(errors), float(np.quantile(errors, 0.9)))


def tile_rounded(num_tokens: int) -> int:
    """Tokens that weight products multiply where nothing else is padded: whole tiles once there is more than one."""
    return num_tokens if num_tokens <= TOKEN_TILE else TOKEN_TILE * -(-num_tokens // TOKEN_TILE)


def tile_sizes(largest: int) -> list[int]:
    """All values of `tile_rounded` up to one of them."""
    return [*range(1, min(largest, TOKEN_TILE) + 1), *range(2 * TOKEN_TILE, largest + 1, TOKEN_TILE)]


def padded_size(num_tokens: int, sizes: Sequence[int]) -> int:
    """The smallest of ascending sizes that holds a step; tiles where there are none or all are too small."""
    index = bisect_left(sizes, num_tokens)
    return sizes[index] if index < len(sizes) else tile_rounded(num_tokens)


# ---- fitting


def _terms(samples: "Sequence[StepSample]", keys: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """What each sample has of each unknown.

    The base is a sum of increments, one for each knot that a sample's size reaches; at least 0 each, so that it never falls.

    Args:
      keys, knots: [samples, 2] and [knots, 2] of kind and size.
    Returns: [samples, knots + 3].
    """
    is_reached = (keys[:, None, 0] == knots[None, :, 0]) & (keys[:, None, 1] >= knots[None, :, 1])
    others = [[each.num_rows, each.decode_context, each.chunk_pairs] for each in samples]
    return np.hstack([is_reached.astype(np.float64), np.array(others, np.float64)])


def _robust_fit(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """x >= 0 with the least sum of Huber's function of log(terms x / seconds), by reweighted least squares: whoever is off by more than USUAL_ERROR counts
    for its error and no longer for its square, and a factor too much is no worse than the same factor too little.

    Args:
      terms, seconds: [samples, unknowns] and [samples].
    """
    predicted, found = seconds, np.zeros(terms.shape[1])
    for _ in range(MAX_FITS):
        # Squares whose slope, at what was predicted last, is that of Huber's function of the logarithm.
        error = np.clip(np.log(predicted / seconds), -USUAL_ERROR, USUAL_ERROR)
        gap = predicted - seconds
        is_off = abs(gap) > 1e-9 * seconds
        scale = np.sqrt(np.divide(error, gap, out=1 / seconds, where=is_off) / predicted)
        found = _non_negative_least_squares(terms * scale[:, None], seconds * scale)
        last, predicted = predicted, np.maximum(terms @ found, 0.1 * seconds)
        if (abs(predicted - last) < 1e-4 * predicted).all():
            break
    return found


def _non_negative_least_squares(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """x >= 0 with the least |columns x - values|: the active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23)."""
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0] = 1.0
    matrix = columns / scale
    num_columns = matrix.shape[1]
    found, is_free = np.zeros(num_columns), np.zeros(num_columns, bool)
    for _ in range(3 * num_columns):
        gain = np.where(is_free, -np.inf, matrix.T @ (values - matrix @ found))
        if gain.max(initial=-np.inf) <= 1e-10 * len(values):
            break
        is_free[gain.argmax()] = True
        while True:
            best = np.zeros(num_columns)
            best[is_free] = np.linalg.lstsq(matrix[:, is_free], values)[0]
            if best[is_free].min() > 0:
                break
            # As far towards the best as all stay at least 0; those that meet 0 stay there.
            falling = is_free & (best <= 0)
            step = (found[falling] / (found[falling] - best[falling])).min()
            found += step * (best - found)
            is_free &= found > 1e-14
            if not is_free.any():
                best = np.zeros(num_columns)
                break
        found = best
    return found / scale
