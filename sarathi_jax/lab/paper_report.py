"""All of Sarathi-Serve's evaluation (arXiv 2403.02310) that the simulator can tell, as one report: rows, and what the paper states beside what was got."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sarathi_jax.lab.paper_grid import Check, Grid, Row, Task, run_grid
from sarathi_jax.lab.paper_inputs import LayoutRow, LengthRow, input_checks, layout_rows, length_rows
from sarathi_jax.lab.paper_runs import (
    AblationRow,
    BubbleRow,
    StallRow,
    ablation_checks,
    ablation_rows,
    bubble_checks,
    bubble_rows,
    stall_checks,
    stall_rows,
)
from sarathi_jax.lab.paper_steps import ChunkRow, InterferenceRow, chunk_rows, interference_rows, step_checks


@dataclass(frozen=True, slots=True)
class PaperReport:
    """grid: capacities. The others: by their modules."""

    grid: Grid
    ablation: list[AblationRow]
    stalls: list[StallRow]
    chunks: list[ChunkRow]
    interference: list[InterferenceRow]
    bubbles: list[BubbleRow]
    lengths: list[LengthRow]
    layouts: list[LayoutRow]

    @property
    def checks(self) -> list[Check]:
        """By the order of the paper's sections."""
        return [
            *input_checks(self.lengths, self.layouts),
            *stall_checks(self.stalls),
            *step_checks(self.chunks, self.interference),
            *self.grid.checks(),
            *ablation_checks(self.ablation),
            *bubble_checks(self.bubbles),
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, and what was checked."""
        parts = {name: [asdict(row) for row in getattr(self, name)] for name in _PARTS}
        capacities = [row.as_json() for row in self.grid.rows]
        checks = [asdict(check) for check in self.checks]
        return {"capacities": capacities, **parts, "checks": checks}


_PARTS = ("ablation", "stalls", "chunks", "interference", "bubbles", "lengths", "layouts")


def run_paper(
    tasks: Sequence[Task], *, num_processes: int, on_done: Callable[[int, Row], None] | None = None
) -> PaperReport:
    """tasks: of `grid_tasks`. on_done: as `run_grid`."""
    grid = run_grid(tasks, num_processes=num_processes, on_done=on_done)
    return PaperReport(
        grid=grid,
        ablation=ablation_rows(),
        stalls=stall_rows(),
        chunks=chunk_rows(),
        interference=interference_rows(),
        bubbles=bubble_rows(),
        lengths=length_rows(),
        layouts=layout_rows(),
    )
