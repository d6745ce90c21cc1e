"""The figures of `simulate paper`, ours beside the paper's. Needs matplotlib, an extra."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sarathi_jax.errors import ConfigError
from sarathi_jax.lab.paper_setup import POLICIES, SLOS, tbt_slo_s
from sarathi_jax.simulation.lengths import FITTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sarathi_jax.lab.paper_report import PaperReport

COLORS = {"orca": "#8d99ae", "vllm": "#2a6f97", "sarathi": "#f4a261"}
DPI = 80


def check_folder(folder: Path) -> None:
    """Before a long run: can figures be drawn, and written there? Raises: ConfigError."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--plot must be a folder, got the file {folder}: name another.")
    if find_spec("matplotlib") is None:
        raise ConfigError("a plot needs matplotlib, which isn't installed: pip install 'sarathi-jax[bench]'.")


def plot_paper(report: "PaperReport", folder: Path) -> None:
    """Draw capacity.png and steps.png into the folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_capacity(report).savefig(folder / "capacity.png", dpi=DPI)
    draw_steps(report).savefig(folder / "steps.png", dpi=DPI)


def draw_capacity(report: "PaperReport") -> "Figure":
    """Figures 10 and 11: a panel a model and data set, a group of bars an SLO."""
    figure = _figure(11, 5)
    panels = figure.subplots(len(FITTED), len(report.grid.models), squeeze=False)
    for lengths, row in zip(FITTED, panels, strict=True):
        for model, axes in zip(report.grid.models, row, strict=True):
            for place, policy in enumerate(POLICIES):
                heights = [report.grid.capacity(model, lengths, slo, policy) for slo in SLOS]
                bars = axes.bar([x + 0.27 * (place - 1) for x in range(len(SLOS))], heights, 0.25)
                for bar in bars:
                    bar.set_color(COLORS[policy])
                axes.bar_label(bars, fmt="%.2g", fontsize=7)
                bars.set_label(policy)
            names = [f"{slo}\n{tbt_slo_s(model, slo):g} s" for slo in SLOS]
            axes.set_xticks(range(len(SLOS)), names, fontsize=8)
            axes.set_title(f"{model}, {lengths}", fontsize=9)
            axes.margins(y=0.15)
    for row in panels:
        row[0].set_ylabel("requests a second")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(POLICIES), fontsize=8)
    return figure


def draw_steps(report: "PaperReport") -> "Figure":
    """Figures 14 and 9: what chunks cost a prompt, and what a prompt costs decodes."""
    figure = _figure(11, 3.4)
    chunks, decodes = figure.subplots(1, 2)
    for size in sorted({row.num_chunk_tokens for row in report.chunks}):
        rows = [row for row in report.chunks if row.num_chunk_tokens == size]
        prompts = [row.num_prompt_tokens for row in rows]
        (line,) = chunks.plot(prompts, [100 * row.overhead for row in rows], marker="o", label=f"{size}")
        measured = [100 * row.measured_overhead for row in rows]
        chunks.plot(prompts, measured, "x:", color=line.get_color())
    chunks.set_xscale("log", base=2)
    chunks.set(
        xlabel="tokens of the prompt",
        ylabel="% longer than in one step",
        title="prompts in chunks of ... tokens (x: measured)",
    )
    chunks.legend(fontsize=8)
    contexts = sorted({row.context for row in report.interference})
    for num_decodes in sorted({row.num_decodes for row in report.interference}):
        rows = [row for row in report.interference if row.num_decodes == num_decodes]
        (line,) = decodes.plot(contexts, [row.with_prompt for row in rows], marker="o", label=f"{num_decodes} decodes")
        decodes.plot(contexts, [row.with_chunk for row in rows], "s--", color=line.get_color())
    decodes.set_xscale("log", base=2)
    decodes.set_yscale("log")
    decodes.set(
        xlabel="context, and tokens of the prompt",
        ylabel="times the decodes alone",
        title="a prompt joins decodes, whole (o) or by a chunk (squares)",
    )
    decodes.legend(fontsize=8)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
