"""What a step sends back, read on the host. The layout is `step_program.make_step`'s."""

import numpy as np

from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.execution.packing import prompt_targets
from sarathi_jax.outputs import TokenLogprobs
from sarathi_jax.sampling_params import MAX_TOP_LOGPROBS
from sarathi_jax.scheduling.schedule import Schedule, StepResult

LOGPROB_WORDS = 2 + 2 * MAX_TOP_LOGPROBS  # log-probability, rank, top ids, top values


def read_step_output(words: np.ndarray, schedule: Schedule, bucket: Bucket) -> StepResult:
    """words: i32, as the step program lays them out."""
    num_rows, size = len(schedule.rows), bucket.num_rows
    token_ids = words[:num_rows].tolist()
    finite = words[size : size + num_rows]
    is_finite = None if finite.all() else (finite == 1).tolist()
    if bucket.variant < Variant.FULL:
        return StepResult(token_ids, is_finite)
    blocks = words[2 * size :].reshape(size + bucket.num_tokens, LOGPROB_WORDS)
    return StepResult(
        token_ids, is_finite, _logprobs(blocks[:num_rows], schedule), _prompt_logprobs(blocks[size:], schedule)
    )


def _logprobs(blocks: np.ndarray, schedule: Schedule) -> list[TokenLogprobs | None] | None:
    if all(row.sampling.logprobs is None for row in schedule.rows):
        return None
    return [
        _read(block, row.sampling.logprobs) if row.does_sample and row.sampling.logprobs is not None else None
        for block, row in zip(blocks, schedule.rows, strict=True)
    ]


def _prompt_logprobs(blocks: np.ndarray, schedule: Schedule) -> list[list[TokenLogprobs] | None] | None:
    if all(row.sampling.prompt_logprobs is None for row in schedule.rows):
        return None
    result: list[list[TokenLogprobs] | None] = []
    start = 0
    for row in schedule.rows:
        count, num_top = len(prompt_targets(row)), row.sampling.prompt_logprobs
        result.append(None if num_top is None else [_read(block, num_top) for block in blocks[start : start + count]])
        start += count
    return result


def _read(block: np.ndarray, num_top: int) -> TokenLogprobs:
    values = block.view(np.float32)
    ids = block[2 : 2 + num_top].tolist()
    top = values[2 + MAX_TOP_LOGPROBS : 2 + MAX_TOP_LOGPROBS + num_top].tolist()
    return TokenLogprobs(float(values[0]), int(block[1]), tuple(zip(ids, top, strict=True)))
