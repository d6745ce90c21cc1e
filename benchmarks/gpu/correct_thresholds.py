"""The thresholds of top-k and top-p checked against sorting in float64.

A top-k's threshold is one of the logits, and has to be that very number. A top-p's is where sums reach a share of the whole: in float32, in whatever order, they may reach it a
token earlier or later when that token lies within 2e-5 of it. So the error is a probability: what is kept beyond the smallest set, or lacks to its mass.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.checks import Array, Check, compiled, implementations
from benchmarks.gpu.correct_cases import ThresholdsCase
from benchmarks.gpu.order import Row
from sarathi_jax.kernels import registry

OPERATION = "filter_thresholds"
MASS_BOUND = 2e-5
WHY = "top-k exact; of top-p, sums in float32"
# top-k (0: all), top-p (1: all), temperature
OPTIONS = (
    (40, 0.9, 0.8), (0, 1.0, 1.0), (1, 1.0, 1.0), (50, 1.0, 0.7), (0, 0.9, 1.0), (0, 0.01, 1.0), (7, 0.5, 1.3), (0, 0.999, 1.0),
    (400, 0.95, 2.0),
)  # fmt: skip


def checks(cases: Sequence[ThresholdsCase], device: Any) -> Iterator[Check]:
    """One an implementation of a case."""
    use = registry.use_on(device, "float32", 64)
    for case in cases:
        for name, function in implementations(OPERATION, use).items():
            row: Row = {"kind": OPERATION, "case": f"{case.num_rows} rows", "shape": case.shape, "implementation": name}
            yield Check(row, partial(_prepare, case, function))


def _prepare(case: ThresholdsCase, function: Callable[..., Any]) -> Callable[[], Row]:
    """Some logits are masked; of several rows the last is padding, all NaN."""
    rng = np.random.default_rng(case.vocab_size)
    logits = rng.standard_normal((case.num_rows, case.vocab_size), np.float32) * 3
    logits[::2, ::5] = -np.inf
    highest = logits.max(axis=1)
    num_real = max(case.num_rows - 1, 1)
    logits[num_real:], highest[num_real:] = np.nan, 0
    columns = zip(*(OPTIONS[row % len(OPTIONS)] for row in range(case.num_rows)), strict=True)
    top_k, top_p, temperature = (
        np.array(column, dtype) for column, dtype in zip(columns, ("int32", "float32", "float32"), strict=True)
    )
    run = compiled(function, (logits, highest, temperature, top_k, top_p))

    def check() -> Row:
        got = run()
        errors = [
            error_of(logits[row], float(got[row]), int(top_k[row]), float(top_p[row]), float(temperature[row]))
            for row in range(num_real)
        ]
        return verdict(errors)

    return check


def verdict(errors: Sequence[float | None]) -> Row:
    """Of each row's error; None is a threshold that no sum explains."""
    wrong = [row for row, error in enumerate(errors) if error is None or error > MASS_BOUND]
    largest = max((error for error in errors if error is not None), default=0.0)
    found: Row = {"error": largest, "bound": MASS_BOUND, "share_of_bound": largest / MASS_BOUND, "why": WHY}
    if wrong:
        found["failed"] = f"{len(wrong)} of {len(errors)} rows have a wrong threshold, row {wrong[0]} first"
    return found


def error_of(logits: Array, threshold: float, top_k: int, top_p: float, temperature: float) -> float | None:
    """How far the mass from the threshold up is from what it should be; None if the threshold is none of the logits, or not the top-k's.

    Args:
      logits: f32[V]. top_k: 0 keeps all. top_p: 1 keeps all.
    """
    exact = np.sort(logits.astype(np.float64))[::-1]
    smallest = exact[top_k - 1] if top_k else -np.inf
    if top_p == 1:
        return 0.0 if threshold == smallest else None
    if threshold not in exact or threshold < smallest:
        return None
    kept = exact[exact >= smallest]
    weights = np.exp((kept - kept[0]) / temperature)
    shares = weights / weights.sum()
    reached, before = shares[kept >= threshold].sum(), shares[kept > threshold].sum()
    return float(max(top_p - reached, before - top_p, 0.0))
