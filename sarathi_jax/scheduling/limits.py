"""The scheduler's numbers, checked once. Knows nothing of requests or of a device."""

import math
from dataclasses import dataclass

from sarathi_jax.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Every number that bounds a step, the pool and a request.

    token_budget: most tokens of one step, decodes included. max_num_seqs: most running requests.
    watermark: share of the pages that an admission leaves free, so that running requests can grow; waived when nothing runs.
    max_num_partial_prefills: most requests that a step may leave with an unfinished prompt; None: no limit.
    long_prefill_token_threshold: most tokens of one prompt in one step; None: up to the budget.
    preempt_every_steps: force a preemption every so many steps (for tests); None: only when pages run out.
    num_microbatches: steps under way at a time in a pipeline of as many stages; a request decodes in at most one of them.
    is_head_of_line_blocking: whether a waiting request that does not fit holds back all that came after it (strict FCFS).

    Raises: ConfigError from the constructor if a number is out of range or contradicts another.
    """

    num_pages: int
    page_size: int = 16
    token_budget: int = 512
    max_num_seqs: int = 128
    max_model_len: int
    vocab_size: int
    watermark: float = 0.01
    max_num_partial_prefills: int | None = None
    long_prefill_token_threshold: int | None = None
    preempt_every_steps: int | None = None
    is_head_of_line_blocking: bool = True
    num_microbatches: int = 1

    def __post_init__(self) -> None:
        for name in (
            "num_pages",
            "page_size",
            "token_budget",
            "max_num_seqs",
            "max_model_len",
            "vocab_size",
            "num_microbatches",
        ):
            _check_positive(name, getattr(self, name))
        for name in ("max_num_partial_prefills", "long_prefill_token_threshold", "preempt_every_steps"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(
                f"watermark={self.watermark!r} must be at least 0 and below 1: it is the share of KV pages kept free. Use 0.01."
            )
        if self.token_budget < self.max_num_seqs:
            raise ConfigError(
                f"token_budget={self.token_budget} must be >= max_num_seqs={self.max_num_seqs}: every running request "
                "decodes one token per step. Raise token_budget or lower max_num_seqs."
            )

    @property
    def num_watermark_pages(self) -> int:
        # The subtraction keeps 0.01 * 700 = 7.000000000000001 from counting as 8.
        return math.ceil(self.watermark * self.num_pages - 1e-9)

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.page_size)


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least 1. Choose a larger value.")
