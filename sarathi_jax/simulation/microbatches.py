"""What went through a simulated pipeline, kept for those who ask why its stages were idle."""

from typing import NamedTuple

from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.simulation.pipelines import Passage
from sarathi_jax.simulation.step_work import StepWork, scheduled_work


class Microbatch(NamedTuple):
    """Whose tokens it had, what there was to do, and when each stage did it."""

    request_ids: tuple[str, ...]
    work: StepWork
    passage: Passage

    def end_s(self, stage: int) -> float:
        return self.passage.starts_s[stage] + self.passage.stage_s[stage]


class MicrobatchRecorder:
    """Keeps every microbatch of a run; an `Observer`."""

    def __init__(self) -> None:
        self.microbatches: list[Microbatch] = []

    def __call__(self, schedule: Schedule, passage: Passage) -> None:
        request_ids = tuple([row.request_id for row in schedule.rows])
        self.microbatches.append(Microbatch(request_ids, scheduled_work(schedule), passage))
