"""Latencies of a set of finished requests as percentiles, by the definitions in docs/metrics.md. Host arithmetic alone."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sarathi_jax.outputs import RequestMetrics

PERCENTILES = (50, 90, 99)


def percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """{"p50": ...} with linear interpolation between the closest ranks; None if there are no values."""
    array = np.fromiter(values, np.float64)
    if not array.size:
        return None
    return {
        f"p{rank}": float(value) for rank, value in zip(PERCENTILES, np.percentile(array, PERCENTILES), strict=True)
    }


def latency_report(metrics: Sequence[RequestMetrics]) -> dict[str, dict[str, float] | None]:
    """Percentiles of each latency; those of TBT are over the gaps of all requests pooled."""
    return {
        "ttft_s": percentiles(each.ttft_s for each in metrics if each.ttft_s is not None),
        "tbt_s": percentiles(gap for each in metrics for gap in each.tbt_s),
        "scheduling_delay_s": percentiles(
            each.scheduling_delay_s for each in metrics if each.scheduling_delay_s is not None
        ),
        "e2e_s": percentiles(each.e2e_s for each in metrics),
    }


def latency_table(report: dict[str, Any]) -> str:
    """The percentiles in milliseconds, one latency a line."""
    lines = [f"{'milliseconds':<20}" + "".join(f"{f'P{rank}':>11}" for rank in PERCENTILES)]
    for name, found in report.items():
        cells = [f"{found[f'p{rank}'] * 1e3:>11.2f}" if found else f"{'-':>11}" for rank in PERCENTILES]
        lines.append(f"{name.removesuffix('_s'):<20}" + "".join(cells))
    return "\n".join(lines)
