"""Stall runs as a picture: a lane a policy, with the time between tokens of the decodes above and the tokens of the steps below. Needs matplotlib, an extra."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sarathi_jax.cli.stall_report import gaps_of
from sarathi_jax.cli.timeline import bar_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sarathi_jax.cli.stall_run import StallRun

DPI = 80


def plot_stalls(runs: "Mapping[str, StallRun]", path: Path) -> None:
    """Draw the runs, by policy, on the same scales, and write the picture to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.6 + 1.9 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    lanes = figure.subplots(2 * len(runs), 1, sharex=True, squeeze=False, height_ratios=[2, 1] * len(runs))[:, 0]
    most_tokens = max(schedule.num_tokens for run in runs.values() for schedule in run.schedules)
    longest_ms = max(gap.seconds for run in runs.values() for each in run.decodes for gap in gaps_of(each)) * 1e3
    for index, (policy, run) in enumerate(runs.items()):
        gaps, steps = lanes[2 * index], lanes[2 * index + 1]
        first_s = run.records[0].start_s
        draw_gaps(gaps, run, first_s)
        gaps.set(ylim=(0, 1.05 * longest_ms), ylabel="TBT, ms")
        gaps.set_title(policy, loc="left", fontsize="medium", fontweight="bold")
        bar_steps(steps, run.records, first_s)
        steps.set(ylim=(0, 1.05 * most_tokens), ylabel="tokens")
    lanes[0].legend(loc="upper right", ncols=2, fontsize="small")
    lanes[1].legend(loc="upper right", ncols=2, fontsize="small")
    lanes[-1].set_xlabel("seconds")
    figure.align_ylabels()
    figure.savefig(path, dpi=DPI)


def draw_gaps(axes: "Axes", run: "StallRun", first_s: float) -> None:
    """What each decode waits for its next token, all through the run, and when prompts arrive."""
    for index, each in enumerate(run.decodes):
        gaps = gaps_of(each)
        ends_s, waits_ms = [gap.end_s - first_s for gap in gaps], [gap.seconds * 1e3 for gap in gaps]
        label = "a decode's wait for its next token" if index == 0 else None
        axes.plot(ends_s, waits_ms, color="#2a6f97", linewidth=1, drawstyle="steps-pre", label=label)
    for index, prompt in enumerate(run.prompts):
        label = "a prompt arrives" if index == 0 else None
        axes.axvline(prompt.arrival_s - first_s, color="#9d4edd", linewidth=1, linestyle=":", label=label)
