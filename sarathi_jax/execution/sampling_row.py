"""One request's sampling options as one row of int32, so that they travel to the device inside the step's packed array.

Numpy only. `sarathi_jax.execution.sampling.unpack_sampling_rows` is the other end.
"""

from enum import IntEnum

import numpy as np

from sarathi_jax.sampling_params import SamplingParams


class SamplingColumn(IntEnum):
    """What each column of a row holds. Floats are float32 bit patterns; the seed is two 32-bit words."""

    TEMPERATURE = 0
    TOP_K = 1
    TOP_P = 2
    MIN_P = 3
    SEED_LOW = 4
    SEED_HIGH = 5
    REPETITION_PENALTY = 6
    PRESENCE_PENALTY = 7
    FREQUENCY_PENALTY = 8


NUM_SAMPLING_COLUMNS = len(SamplingColumn)


def pack_sampling_row(params: SamplingParams, seed: int) -> np.ndarray:
    """The row of one request.

    Args:
      params: its options; `params.seed` is not read, for the caller may have drawn one.
      seed: 0 <= seed < 2**64, of this sample (with n > 1 each sample has its own).
    Returns: i32[NUM_SAMPLING_COLUMNS].
    """
    assert 0 <= seed < 2**64, "a seed is two 32-bit words"
    row = np.zeros(NUM_SAMPLING_COLUMNS, np.int32)
    floats, words = row.view(np.float32), row.view(np.uint32)
    # A greedy request says so exactly: its temperature could round up to the limit in float32.
    floats[SamplingColumn.TEMPERATURE] = 0.0 if params.is_greedy else params.temperature
    row[SamplingColumn.TOP_K] = params.top_k
    floats[SamplingColumn.TOP_P] = params.top_p
    floats[SamplingColumn.MIN_P] = params.min_p
    words[SamplingColumn.SEED_LOW] = seed & 0xFFFFFFFF
    words[SamplingColumn.SEED_HIGH] = seed >> 32
    floats[SamplingColumn.REPETITION_PENALTY] = params.repetition_penalty
    floats[SamplingColumn.PRESENCE_PENALTY] = params.presence_penalty
    floats[SamplingColumn.FREQUENCY_PENALTY] = params.frequency_penalty
    return row
