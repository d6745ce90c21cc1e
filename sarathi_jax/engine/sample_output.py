"""One sample of a request as it grows: tokens, text, log-probabilities and the times they came at."""

import itertools

from sarathi_jax.outputs import CompletionOutput, Fault, FinishReason, RequestMetrics, TokenLogprobs
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import TokenOutput
from sarathi_jax.text.output_text import OutputText


class SampleOutput:
    """Collects what the scheduler brings of one sample.

    Args:
      request: the sample, as the scheduler holds it.
      text: its detokenizer and stop strings; None without a tokenizer.
      shown: what the text has settled of tokens that the request came with.

    finish_reason: None while it goes on. fault: of an "error".
    """

    __slots__ = (
        "_deltas",
        "_logprobs",
        "_stop_token_id",
        "_text",
        "_token_times_s",
        "fault",
        "finish_reason",
        "index",
        "request",
    )

    def __init__(self, request: Request, text: OutputText | None, shown: str = "") -> None:
        self.request = request
        self.index = request.sample_index
        self.finish_reason: FinishReason | None = None
        self._text = text
        self._deltas: list[str] = [shown] if shown else []
        self._token_times_s: list[float] = []
        self._logprobs: list[TokenLogprobs] | None = [] if request.sampling.logprobs is not None else None
        self._stop_token_id: int | None = None
        self.fault: Fault | None = None

    @property
    def num_new_tokens(self) -> int:
        """Tokens that came so far."""
        return len(self._token_times_s)

    def push(self, output: TokenOutput, now_s: float) -> str:
        """Take in a token. Returns: the text it settles.

        Afterwards `finish_reason` is set if the sample ended, by the scheduler's judgement or by a stop string, which the
        scheduler has to be told of.
        """
        token_id, text, delta = output.token_id, self._text, ""
        if token_id is not None:
            self._token_times_s.append(now_s)
            if self._logprobs is not None and output.logprobs is not None:
                self._logprobs.append(output.logprobs)
            if text is not None and output.stop_token_id is None:
                delta = text.push(token_id)
        if output.finish_reason is None and (text is None or text.matched_stop is None):
            if delta:
                self._deltas.append(delta)
            return delta
        self._stop_token_id, self.fault = output.stop_token_id, output.fault
        return delta + self._finish(output.finish_reason or "stop", delta)

    def end(self, reason: FinishReason) -> str:
        """The sample ended without a token, as by an abort. Returns: the text that was held back."""
        return self._finish(reason, "")

    def completion(self) -> CompletionOutput:
        """The finished sample."""
        assert self.finish_reason is not None, "the sample has ended"
        return CompletionOutput(
            self.index,
            "".join(self._deltas),
            self.request.output_token_ids,
            self.finish_reason,
            self._stop_reason(),
            self._logprobs,
            self._metrics(),
        )

    def _finish(self, reason: FinishReason, delta: str) -> str:
        """End the text too: what was held back may still complete a stop string. Returns: the text after `delta`."""
        rest = ""
        if self._text is not None:
            if self._text.matched_stop is None:
                rest = self._text.finish()
            if self._text.matched_stop is not None:
                reason = "stop"
        self.finish_reason = reason
        self._deltas.append(delta + rest)
        return rest

    def _stop_reason(self) -> str | int | None:
        if self._text is not None and self._text.matched_stop is not None:
            return self._text.matched_stop
        if self.fault is not None:
            return self.fault
        is_asked_for = self._stop_token_id in self.request.sampling.stop_token_ids
        return self._stop_token_id if is_asked_for else None

    def _metrics(self) -> RequestMetrics:
        request, times = self.request, self._token_times_s
        arrival_s, first_s, finished_s = request.arrival_s, request.first_scheduled_s, request.finished_s
        assert finished_s is not None, "the scheduler has ended the request"
        return RequestMetrics(
            arrival_s=arrival_s,
            scheduling_delay_s=None if first_s is None else first_s - arrival_s,
            ttft_s=times[0] - arrival_s if times else None,
            tbt_s=[after - before for before, after in itertools.pairwise(times)],
            e2e_s=finished_s - arrival_s,
            num_prefix_hit_tokens=request.num_prefix_hit_tokens,
            num_preemptions=request.num_preemptions,
        )
