"""Requests to measure with: how long their prompts and outputs are and when they arrive, drawn from a seed or read from a trace. Host arithmetic alone.

Prompts are random token ids: what they say doesn't matter, only that no two share a prefix.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sarathi_jax.errors import ConfigError

DISTRIBUTIONS = ("fixed", "uniform", "zipf")
TRACE_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


class RequestShape(NamedTuple):
    """One request: seconds after the start at which it arrives, tokens of its prompt, tokens to generate."""

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int


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
        if num_requests < 1:
            raise ConfigError(f"num_requests must be at least 1, got {num_requests}: pass a positive number.")
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


def read_trace(path: Path, max_requests: int | None = None) -> list[RequestShape]:
    """The first rows of a CSV file, by arrival. Raises: ConfigError if it can't be read, lacks a column, or holds a wrong number."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or ())
            shapes = [_read_row(path, line, row) for line, row in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"the trace {path} must be a CSV file, got {error}: check its name and contents.") from error
    if not shapes:
        raise ConfigError(f"the trace {path} must have rows, got only a header: add requests.")
    return sorted(shapes)[:max_requests]


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in TRACE_COLUMNS if name not in columns]
    if missing:
        raise ConfigError(
            f"the trace {path} must have columns {','.join(TRACE_COLUMNS)}, got {','.join(columns) or 'none'}: "
            f"add {', '.join(missing)}."
        )


def _read_row(path: Path, line: int, row: Mapping[str, str]) -> RequestShape:
    try:
        shape = RequestShape(float(row["arrival_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
        if 0 <= shape.arrival_s < float("inf") and min(shape.num_prompt_tokens, shape.num_output_tokens) > 0:
            return shape
    except (TypeError, ValueError):
        pass
    got = ",".join(str(row[name]) for name in TRACE_COLUMNS)
    raise ConfigError(
        f"line {line} of the trace {path} must hold an arrival >= 0 and two counts >= 1, got {got}: mend that line."
    )


def with_poisson_arrivals(shapes: Sequence[RequestShape], requests_per_s: float, seed: int) -> list[RequestShape]:
    """The same requests in the same order, with exponential gaps between them; the first arrives at 0.

    Raises: ConfigError if the rate is not a positive number."""
    if not 0 < requests_per_s < float("inf"):
        raise ConfigError(f"request_rate must be above 0, got {requests_per_s}: leave it out to send all at once.")
    gaps_s = np.random.default_rng([seed, 1]).exponential(1 / requests_per_s, len(shapes) - 1)
    arrivals_s = [0.0, *np.cumsum(gaps_s).tolist()]
    return [shape._replace(arrival_s=arrival) for shape, arrival in zip(shapes, arrivals_s, strict=True)]


def random_prompts(lengths: Sequence[int], vocab_size: int, seed: int) -> list[list[int]]:
    """One list of token ids a length."""
    rng = np.random.default_rng([seed, 2])
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]
