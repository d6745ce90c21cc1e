"""The step timeline of a run as a picture: one bar a step, as wide as it lasted, prefill tokens stacked on decode tokens. Needs matplotlib, an extra."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sarathi_jax.engine.records import StepRecord, step_seconds
from sarathi_jax.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")


def check_plotting(path: Path) -> None:
    """Before a long run: can a picture be drawn, and written there? Raises: ConfigError."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"the plot's name must end in {', '.join(FORMATS)}, got {path}: rename it.")
    if not path.parent.is_dir():
        raise ConfigError(f"the plot's folder must exist, got {path.parent}: make it first.")
    if find_spec("matplotlib") is None:
        raise ConfigError("a plot needs matplotlib, which isn't installed: pip install 'sarathi-jax[bench]'.")


def plot_timeline(records: Sequence[StepRecord], path: Path) -> None:
    """Draw the steps and write the picture to `path`."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # optional; and no pyplot: no window system is asked for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    first_s = records[0].start_s
    bar_steps(axes, records, first_s)
    axes.set(xlabel="seconds", ylabel="tokens in the step", title=f"{len(records)} steps")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=150)


def bar_steps(axes: "Axes", records: Sequence[StepRecord], first_s: float) -> None:
    """A bar for the time that each step alone added, from `first_s` on: with the overlapped loop a step starts before the one before it ends."""
    widths = step_seconds(records)
    starts = [record.end_s - first_s - width for record, width in zip(records, widths, strict=True)]
    decode = [record.num_decode_tokens for record in records]
    prefill = [record.num_prefill_tokens for record in records]
    axes.bar(starts, decode, widths, align="edge", label="decode", color="#2a6f97")
    axes.bar(starts, prefill, widths, bottom=decode, align="edge", label="prefill", color="#f4a261")
