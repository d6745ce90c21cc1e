"""What a completed step brings one request."""

from typing import NamedTuple

from sarathi_jax.outputs import FinishReason, TokenLogprobs
from sarathi_jax.scheduling.request import Request


class TokenOutput(NamedTuple):
    """One request's share of a step's result.

    token_id: the new token; None if the row brought only prompt log-probabilities, or failed.
    prompt_logprobs: those of the prompt positions that follow the ones delivered before.
    finish_reason: why the request ended with this; None while it goes on.
    stop_token_id: the end-of-sequence or stop token that ended it; it is the last of the output tokens.
    """

    request: Request
    sample_index: int
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
