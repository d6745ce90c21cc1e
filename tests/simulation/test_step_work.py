"""What a schedule comes to, counted by hand."""

import numpy as np
import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow
from sarathi_jax.simulation.step_work import ChunkWork, StepWork, decode_work, prefill_work, scheduled_work


def row(start: int, num_tokens: int) -> ScheduledRow:
    return ScheduledRow(
        request_id=f"from {start}",
        start=start,
        num_tokens=num_tokens,
        token_ids=[1] * num_tokens,
        block_table=np.zeros(64, np.int32),
        batch_slot=0,
        does_sample=True,
        is_first=False,
        context_token_ids=(),
        num_prompt_tokens=100,
        num_output_tokens=0,
        sampling=SamplingParams(),
        seed=0,
    )


def test_a_schedule_is_its_decodes_and_its_chunks() -> None:
    """Decodes at positions 9 and 99 see 10 and 100 tokens; a chunk of 48 follows 16 that are cached."""
    work = scheduled_work(Schedule(0, (row(9, 1), row(99, 1), row(16, 48)), 50, 2))
    assert work == StepWork((ChunkWork(16, 48),), 2, 110)
    assert (work.num_tokens, work.num_rows) == (50, 3)


def test_steps_of_one_kind() -> None:
    assert decode_work(32, 4096) == StepWork((), 32, 32 * 4096)
    assert prefill_work(512, 1024) == StepWork((ChunkWork(1024, 512),), 0, 0)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        prefill_work(-1).check()
