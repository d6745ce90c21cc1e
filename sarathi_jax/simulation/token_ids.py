"""Token ids of a workload's prompts: what they say doesn't matter, only that no two share a prefix."""

from collections.abc import Sequence

import numpy as np


def random_prompts(lengths: Sequence[int], vocab_size: int, seed: int) -> list[list[int]]:
    """One list of token ids a length."""
    rng = np.random.default_rng([seed, 2])
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]
