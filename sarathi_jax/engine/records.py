"""What each step did: the raw material of benchmarks, timelines and explanations. No text and no tokens in it."""

from collections.abc import Iterable
from typing import NamedTuple

from sarathi_jax.engine.executor import StepShape
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.step_rows import num_grown_outputs


class StepRecord(NamedTuple):
    """One step. Times are the engine clock's.

    start_s: when scheduling it began. end_s: when its tokens were on the host. With the overlapped loop, the next step starts before this one ends.
    num_decode_tokens, num_prefill_tokens: a recomputed token counts as prefill.
    bucket: the shape it was padded to.
    replica: the engine that ran it, where there are several.
    """

    step: int
    start_s: float
    end_s: float
    num_decode_tokens: int
    num_prefill_tokens: int
    num_rows: int
    bucket: StepShape
    num_preemptions: int
    replica: int = 0


def record_step(schedule: Schedule, bucket: StepShape, start_s: float, end_s: float, replica: int = 0) -> StepRecord:
    """The record of a completed step."""
    num_decode_tokens = num_grown_outputs(schedule)  # all else is read, not generated
    return StepRecord(
        schedule.step,
        start_s,
        end_s,
        num_decode_tokens,
        schedule.num_tokens - num_decode_tokens,
        len(schedule.rows),
        bucket,
        len(schedule.preempted_request_ids),
        replica,
    )


def step_seconds(records: Iterable[StepRecord]) -> list[float]:
    """What each step took: from when it could begin, the one before it being done, until its tokens were on the host.

    With the overlapped loop a step is scheduled, and its time begins to run, while the one before it is under way; that part belongs to the other.
    records: of one engine, in their order, none left out.
    """
    seconds, last_end_s = list[float](), float("-inf")
    for record in records:
        seconds.append(record.end_s - max(record.start_s, last_end_s))
        last_end_s = record.end_s
    return seconds
