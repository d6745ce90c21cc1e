"""How long prompts and outputs are, drawn from a seed: simple distributions, and the two of Sarathi-Serve's evaluation (arXiv 2403.02310, Table 2).

The same seed gives the same lengths in the same order; when the requests arrive is another matter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.workloads import RequestShape, check_count

DISTRIBUTIONS = ("fixed", "uniform", "zipf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """Lengths drawn from a distribution over 1 .. the longest: `fixed` is always the longest, `uniform` any alike, `zipf` length k with
    probability proportional to k ** -zipf_theta.

    Raises: ConfigError, from the constructor."""

    distribution: str = "fixed"
    max_prompt_tokens: int = 128
    max_output_tokens: int = 64
    zipf_theta: float = 0.6

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ConfigError(
                f"lengths must be one of {', '.join(DISTRIBUTIONS)}, got {self.distribution}: choose one."
            )
        for name in ("max_prompt_tokens", "max_output_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}: pass a positive number.")
        if not 0 <= self.zipf_theta <= 10:
            raise ConfigError(
                f"zipf_theta must be between 0 and 10, got {self.zipf_theta}: choose a value in that range."
            )

    def draw(self, num_requests: int, seed: int) -> list[RequestShape]:
        """All of them arrive at once."""
        check_count(num_requests)
        rng = np.random.default_rng(seed)
        prompts = self._lengths(rng, self.max_prompt_tokens, num_requests)
        outputs = self._lengths(rng, self.max_output_tokens, num_requests)
        return [RequestShape(0.0, prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]

    def _lengths(self, rng: np.random.Generator, longest: int, count: int) -> list[int]:
        if self.distribution == "fixed":
            return [longest] * count
        if self.distribution == "uniform":
            return rng.integers(1, longest, count, endpoint=True).tolist()
        weights = np.arange(1, longest + 1, dtype=np.float64) ** -self.zipf_theta
        return (1 + rng.choice(longest, count, p=weights / weights.sum())).tolist()


type Quantiles = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp(N(ln median, sigma)), cut off above `longest` tokens."""

    median: float
    sigma: float
    longest: int

    def __call__(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tokens below which these shares of it lie, each above 0 and at most 1."""
        normal = NormalDist(math.log(self.median), self.sigma)
        below_longest = normal.cdf(math.log(self.longest))
        return np.exp([normal.inv_cdf(share * below_longest) for share in shares.tolist()])


@dataclass(frozen=True, slots=True)
class Table:
    """Quantiles, and straight lines between them."""

    percents: tuple[float, ...]
    tokens: tuple[int, ...]

    def __call__(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tokens below which these shares of it lie."""
        return np.interp(100 * shares, self.percents, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Lengths as a data set has them: both distributions, how they go together, and a limit on their sum.

    Of n requests each n-th part of either distribution gets one, so that means differ little from seed to seed: with 2048 independent draws of
    `SHAREGPT` the mean prompt, and so the capacity, would vary by 2 %. Where the sum is above the limit, one of the two is drawn again until it fits.

    correlation: of the normal variables whose ranks are the lengths' ranks.
    redrawn: which of the two gives way; the other keeps its distribution exactly."""

    prompts: Quantiles
    outputs: Quantiles
    correlation: float
    max_total_tokens: int
    redrawn: Literal["prompts", "outputs"]

    def draw(self, num_requests: int, seed: int) -> list[RequestShape]:
        """All of them arrive at once. Raises: ConfigError."""
        check_count(num_requests)
        rng = np.random.default_rng(seed)
        first, second = rng.standard_normal((2, num_requests))
        second = self.correlation * first + math.sqrt(1 - self.correlation**2) * second
        drawn = {"prompts": whole_tokens(self.prompts, _shares(first, rng))}
        drawn["outputs"] = whole_tokens(self.outputs, _shares(second, rng))
        again = drawn[self.redrawn]
        while (is_over := drawn["prompts"] + drawn["outputs"] > self.max_total_tokens).any():
            again[is_over] = whole_tokens(getattr(self, self.redrawn), 1 - rng.random(is_over.sum()))
        pairs = zip(drawn["prompts"].tolist(), drawn["outputs"].tolist(), strict=True)
        return [RequestShape(0.0, prompt, output) for prompt, output in pairs]


def _shares(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """In the order of the values, a random point of each n-th part of (0, 1]."""
    ranks = values.argsort().argsort()
    return (ranks + 1 - rng.random(len(values))) / len(values)


def whole_tokens(quantiles: Quantiles, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.maximum(1, np.rint(quantiles(shares))).astype(np.int64)


# openchat_sharegpt4 (chat; each round a request, its history counted in the prompt): quantiles of the 30,731 requests of the trace that the authors
# published, branch niyama_asplos2026 of microsoft/sarathi-serve (Apache-2.0), tokens of Llama 2; of the outputs where the prompt, at most 7,168 tokens,
# leaves room for the longest. Table 2 prints the outputs' standard deviation, 266, in arxiv's row. With this correlation the limit leaves the trace's
# rank correlation, 0.05.
_PERCENTS = (0, 2, 5, 10, 15, 20, 30, 40, 50, 60, 65, 70, 75, 80, 85, 90, 95, 98, 99, 100)
_PROMPTS = (1, 16, 29, 74, 180, 382, 777, 1203, 1730, 2401, 2799, 3235, 3734, 4278, 4918, 5696, 6563, 7164, 7434, 8141)
_OUTPUTS = (2, 19, 44, 85, 131, 184, 274, 349, 418, 496, 537, 584, 631, 687, 758, 836, 922, 976, 999, 1024)
SHAREGPT = Fitted(
    prompts=Table(_PERCENTS, _PROMPTS),
    outputs=Table(_PERCENTS, _OUTPUTS),
    correlation=0.075,
    max_total_tokens=8192,
    redrawn="outputs",
)

# arxiv_summarization: that trace is not public. Three parameters of the outputs and two of the prompts, solved for what Table 2 prints of each (median,
# 90th percentile, and the standard deviations, 101 for the outputs being in the other row), the limit on the sum taken into account.
ARXIV = Fitted(
    prompts=LogNormal(median=7974, sigma=0.6705, longest=16384),
    outputs=LogNormal(median=210.5, sigma=0.478, longest=563),
    correlation=0.0,
    max_total_tokens=16384,
    redrawn="prompts",
)
FITTED = {"sharegpt": SHAREGPT, "arxiv": ARXIV}
