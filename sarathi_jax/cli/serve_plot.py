"""Loads on a server as a picture: latencies by load, how TBT is distributed, and when each request waited and streamed. Needs matplotlib, an extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sarathi_jax.cli.serve_trials import Trial, pooled_gaps_s, ttft_s
from sarathi_jax.cli.simulate_plot import COLORS, DPI, draw_distributions, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LANES = 400
MAX_CURVES = len(COLORS)
WAITING, STREAMING, FAILED = "#f4a261", "#2a6f97", "#c1121f"


def plot_trials(trials: Sequence[Trial], reports: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the trials and write the picture to `path`. reports: of each, as `trial_json` has it."""
    figure = new_figure(13, 8)
    axes = figure.subplot_mosaic([["left", "tbt"], ["requests", "requests"]])
    if len(trials) > 1:
        draw_by_load(axes["left"], reports)
    else:
        firsts = np.array([each for each in map(ttft_s, trials[0].completed) if each is not None])
        draw_known(axes["left"], {"": 1e3 * firsts}, "TTFT, ms")
    shown = trials[-MAX_CURVES:]
    draw_known(axes["tbt"], {trial.name: 1e3 * pooled_gaps_s(trial) for trial in shown}, "TBT, ms")
    draw_requests(axes["requests"], trials[-1])
    figure.savefig(path, dpi=DPI)


def draw_by_load(axes: "Axes", reports: Sequence[dict[str, Any]]) -> None:
    """TTFT and TBT against the rate, or against how many requests ran at a time."""
    by_rate = all(each["request_rate"] is not None for each in reports)
    key = "request_rate" if by_rate else "concurrency"
    loads = sorted((each for each in reports if each[key] is not None), key=lambda each: each[key])
    for color, (name, label) in zip(COLORS, (("ttft_s", "TTFT"), ("tbt_s", "TBT")), strict=False):
        for rank, style in (("p50", ":"), ("p99", "-")):
            points = [(each[key], 1e3 * each["latencies"][name][rank]) for each in loads if each["latencies"][name]]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, "o" + style, markersize=3, color=color, label=f"{rank.upper()} {label}")
    axes.set(xlabel="requests/s" if by_rate else "requests at a time", ylabel="ms", yscale="log")
    axes.legend(fontsize="small")


def draw_known(axes: "Axes", values: dict[str, np.ndarray], label: str) -> None:
    """Distributions of those that have values above 0, which a logarithmic axis needs."""
    known = {name: each[each > 0] for name, each in values.items()}
    known = {name: each for name, each in known.items() if each.size}
    if known:
        draw_distributions(axes, known, label)
    else:
        axes.set(xlabel=label, ylabel="share")


def draw_requests(axes: "Axes", trial: Trial) -> None:
    """A lane a request, in order of arrival: waiting for its first token, then streaming."""
    ended = sorted(trial.run.ended, key=lambda each: each.arrival_s)[:MAX_LANES]
    kinds: dict[str, list[tuple[int, float, float]]] = {WAITING: [], STREAMING: [], FAILED: []}
    for lane, request in enumerate(ended):
        first_s = request.token_times_s[0] if request.token_times_s else request.end_s
        if request.failure is not None:
            kinds[FAILED].append((lane, request.arrival_s, request.end_s))
            continue
        kinds[WAITING].append((lane, request.arrival_s, first_s))
        kinds[STREAMING].append((lane, first_s, request.end_s))
    names = {WAITING: "waits for its first token", STREAMING: "streams", FAILED: "failed"}
    for color, bars in kinds.items():
        if bars:
            lanes, begins, ends = zip(*bars, strict=True)
            widths = [end - begin for begin, end in zip(begins, ends, strict=True)]
            axes.barh(lanes, widths, left=begins, height=0.8, color=color, label=names[color])
    title = f"{trial.name}: {len(ended)} of {trial.num_requests} requests"
    axes.set(xlabel="seconds", ylabel="requests", title=title)
    if ended:
        axes.legend(loc="upper left", fontsize="small")
