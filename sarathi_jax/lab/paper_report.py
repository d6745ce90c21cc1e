"""All of Sarathi-Serve's evaluation (arXiv 2403.02310) that the simulator can tell, as one report: rows, and what the paper states beside what was got."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sarathi_jax.lab.paper_grid import Check, Grid, Row, run_grid
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

    num_requests: int
    grid: Grid
    ablation: list[AblationRow]
    stalls: list[StallRow]
    chunks: list[ChunkRow]
    interference: list[InterferenceRow]
    bubbles: list[BubbleRow]

    @property
    def checks(self) -> list[Check]:
        """By the order of the paper's sections."""
        return [
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
        return {"num_requests": self.num_requests, "capacities": capacities, **parts, "checks": checks}


_PARTS = ("ablation", "stalls", "chunks", "interference", "bubbles")


def run_paper(
    num_requests: int, *, num_processes: int, on_done: Callable[[int, Row], None] | None = None
) -> PaperReport:
    """num_requests: of each trial of a capacity search. on_done: as `run_grid`."""
    grid = Grid(run_grid(num_requests, num_processes=num_processes, on_done=on_done))
    return PaperReport(
        num_requests, grid, ablation_rows(), stall_rows(), chunk_rows(), interference_rows(), bubble_rows()
    )
