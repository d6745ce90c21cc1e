"""What a completed step brings one request."""

from typing import NamedTuple

from sarathi_jax.outputs import Fault, FinishReason, TokenLogprobs
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import ScheduledRow


class TokenOutput(NamedTuple):
    """One request's share of a step's result.

    token_id: the new token; None if the row brought only prompt log-probabilities, or failed.
    prompt_logprobs: those of the prompt positions that follow the ones delivered before.
    finish_reason: why the request ended with this; None while it goes on.
    stop_token_id: the end-of-sequence or stop token that ended it; it is the last of the output tokens.
    fault: what the error was that it ended with.
    """

    request: Request
    sample_index: int
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    fault: Fault | None = None


def ended_by(request: Request, fault: Fault) -> TokenOutput:
    """The end of a request that brought no token."""
    return TokenOutput(request, request.sample_index, None, finish_reason="error", fault=fault)


def new_prompt_logprobs(request: Request, row: ScheduledRow, given: list[TokenLogprobs]) -> list[TokenLogprobs] | None:
    """Those of a row's prompt log-probabilities that were not delivered before a preemption; None if there are none."""
    new = given[max(0, request.num_prompt_logprobs - row.start) :]
    request.num_prompt_logprobs += len(new)
    return new or None
