"""A plan as a picture: a bar a mesh and step, stacked from what the step is made of. Needs matplotlib, an extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sarathi_jax.cli.plan_report import PART_NAMES

if TYPE_CHECKING:
    from sarathi_jax.lab.plan_task import Planned, PlanTask

COLORS = ("#2a6f97", "#a9d6e5", "#f4a261", "#e76f51", "#8d5a97", "#577590", "#43aa8b")


def plot_layouts(task: "PlanTask", planned: "Sequence[Planned]", path: Path) -> None:
    """Draw the latency of a token, by its parts, in steps of decodes alone (left) and of the full budget (right), and write the picture to `path`. Meshes that can't be are left out."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,  # optional; and no pyplot: no window system is asked for
    )
    from matplotlib.figure import Figure

    layouts = [each.layout for each in planned if each.layout.decode and each.layout.full and not each.layout.why_not]
    figure = Figure(figsize=(12, 2 + 0.4 * len(layouts)), layout="constrained")
    FigureCanvasAgg(figure)
    names = [layout.placement.describe() for layout in layouts]
    for place, step in enumerate(("decode", "full")):
        axes = figure.add_subplot(1, 2, place + 1)
        starts = [0.0] * len(layouts)
        for (part, title), color in zip(PART_NAMES.items(), COLORS, strict=True):
            widths = [1e3 * layout.placement.stage * getattr(layout, step).parts[part] for layout in layouts]
            axes.barh(names, widths, left=starts, label=title, color=color)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.invert_yaxis()
        axes.set(
            xlabel="ms until a token",
            title="decodes alone" if step == "decode" else f"steps of {task.load.token_budget} tokens",
        )
    figure.axes[0].legend(loc="best", fontsize="small")
    figure.suptitle(
        f"{task.engine.model} on {task.deployment.num_hosts} x {task.deployment.gpus_per_host} {task.deployment.device.name}"
    )
    figure.savefig(path, dpi=150)
