"""Simulated runs and searches as pictures. Needs matplotlib, an extra."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sarathi_jax.cli.timeline import bar_steps
from sarathi_jax.simulation.results import SimulationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
COLORS = ("#2a6f97", "#f4a261", "#8d5a97", "#43aa8b", "#e76f51", "#577590")
MAX_STEPS = 400  # of a timeline: more would be a solid block


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional; no pyplot: no window system is asked for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_run(result: SimulationResult, path: Path) -> None:
    """Draw how TBT and TTFT are distributed, and steps from the middle of the run on, and write the picture to `path`."""
    figure = new_figure(12, 7)
    axes = figure.subplot_mosaic([["tbt", "ttft"], ["steps", "steps"]])
    draw_distributions(axes["tbt"], {"": 1e3 * result.tbt_s}, "TBT, ms")
    draw_distributions(axes["ttft"], {"": result.ttft_s}, "TTFT, s")
    steps = axes["steps"]
    first = max(len(result.steps) // 2 - MAX_STEPS // 2, 0)
    shown = result.steps[first : first + MAX_STEPS]
    bar_steps(steps, shown, 0.0)
    steps.set(xlabel="seconds", ylabel="tokens in the step", title=f"{len(shown)} of {len(result.steps)} steps")
    steps.legend(loc="upper right")
    figure.savefig(path, dpi=DPI)


def draw_distributions(axes: "Axes", values: Mapping[str, np.ndarray], label: str) -> None:
    """Shares of values up to each size, and where 99 % lie below."""
    for (name, each), color in zip(values.items(), COLORS, strict=False):
        shares = np.linspace(0, 1, min(len(each), 2000) + 1)
        axes.plot(np.quantile(each, shares), shares, color=color, label=name or None)
        axes.axvline(float(np.quantile(each, 0.99)), color=color, linewidth=0.8, linestyle=":")
    axes.set(xlabel=f"{label} (dotted: P99)", ylabel="share", xscale="log", ylim=(0, 1))
    if len(values) > 1:
        axes.legend(loc="lower right", fontsize="small")


def plot_capacities(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a bar a cell, grouped by SLO, and what the trials say of latencies against the load; write the picture to `path`."""
    figure = new_figure(13, 4)
    bars, tbt, ttft = figure.subplots(1, 3)
    slos_s = sorted({cell["tbt_slo_s"] for cell in cells})
    engines = list(dict.fromkeys((cell["policy"], cell["token_budget"]) for cell in cells))
    capacities = {
        (cell["policy"], cell["token_budget"], cell["tbt_slo_s"]): cell["requests_per_s"] or 0.0 for cell in cells
    }
    draw_bars(
        bars,
        [f"{1e3 * slo_s:.0f} ms" for slo_s in slos_s],
        {f"{policy} {budget}": [capacities[policy, budget, slo_s] for slo_s in slos_s] for policy, budget in engines},
    )
    bars.set(xlabel="SLO of P99 TBT", ylabel="capacity, requests/s")
    for engine, color in zip(engines, COLORS * len(engines), strict=False):
        trials = [
            trial
            for cell in cells
            if (cell["policy"], cell["token_budget"]) == engine
            for trial in cell["trials"]
            if not trial["is_cut_short"]
        ]
        trials.sort(key=lambda trial: trial["requests_per_s"])
        rates = [trial["requests_per_s"] for trial in trials]
        tbt.plot(rates, [1e3 * trial["p99_tbt_s"] for trial in trials], "o-", markersize=3, color=color)
        ttft.plot(rates, [trial["median_ttft_s"] for trial in trials], "o-", markersize=3, color=color)
    tbt.set(xlabel="requests/s", ylabel="P99 TBT, ms", yscale="log")
    ttft.set(xlabel="requests/s", ylabel="median TTFT, s", yscale="log")
    figure.savefig(path, dpi=DPI)


def draw_bars(axes: "Axes", groups: Sequence[str], bars: Mapping[str, Sequence[float]]) -> None:
    """Groups of bars, one of each name in every group."""
    width = 0.8 / len(bars)
    for index, ((name, heights), color) in enumerate(zip(bars.items(), COLORS * len(bars), strict=False)):
        places = [group + (index - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(places, heights, width, label=name, color=color)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend(fontsize="small")
