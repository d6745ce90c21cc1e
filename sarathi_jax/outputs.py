"""What comes back from the engine, whatever door the request went in by. Times are seconds; docs/metrics.md defines them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort", "error"]
Fault = Literal["internal_error", "numerical_error", "grammar_limit"]


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position: of the token itself, its rank from 1, and the most probable ones, in descending order."""

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened to one sample of a request.

    arrival_s: on the engine's clock.
    scheduling_delay_s: arrival to first scheduled; None if it never was.
    ttft_s: arrival to first token; None without one.
    tbt_s: gaps between consecutive tokens; the first token has none.
    e2e_s: arrival to the end.
    """

    arrival_s: float
    scheduling_delay_s: float | None
    ttft_s: float | None
    tbt_s: list[float]
    e2e_s: float
    num_prefix_hit_tokens: int
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sample.

    finish_reason: "stop" (end of sequence, stop string or stop id), "length", "abort", or "error".
    stop_reason: the stop string or stop id that ended it; of an "error" what it was: "numerical_error" (logits that were not finite, or a token that is none
      of the vocabulary), "grammar_limit" (its structure could not go on) or "internal_error" (every step that it was in failed); None for end of sequence and all else.
    logprobs: one a token, if asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: list[TokenLogprobs] | None
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request.

    prompt: its text, or None if it came as token ids.
    prompt_logprobs: one a prompt token from the second on, with None for the first, if asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: Sequence[TokenLogprobs | None] | None

    @property
    def metrics(self) -> RequestMetrics:
        """Of the first sample."""
        return self.outputs[0].metrics


class StreamEvent(NamedTuple):
    """What a sample gained in one step.

    text_delta: text that no later token can change; all deltas joined are the sample's text.
    token_ids: the tokens that came, the one that ended the output included.
    finish_reason: why the sample ended with this; None while it goes on.
    output: the whole request, in the event that ends its last sample.
    logprobs: of the token that came, if asked for; None without one.
    prompt_logprobs: all of the prompt's, as in `RequestOutput`, if asked for: in the event of the first sample's first token, and in no other.
    fault: what an "error" was, as the `stop_reason` of its output says, too.
    """

    request_id: str
    sample_index: int
    text_delta: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    fault: Fault | None = None
