"""What a completed step brings one request."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple, overload

from sarathi_jax.outputs import Fault, FinishReason, TokenLogprobs
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import ScheduledRow, StepResult


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


class StepOutputs(Sequence[TokenOutput]):
    """What a completed step brings, in the order of its rows. What decodes get that just go on becomes a `TokenOutput` when it is looked at: a simulator does not.

    Args:
      failed: of requests that ended because their row was of no use. decodes: the first requests of the step's result.

    dropped: places of decodes that had ended before.
    """

    def __init__(self, failed: Sequence[TokenOutput], decodes: Sequence[Request], result: StepResult) -> None:
        self.dropped: set[int] = set()
        self._failed = failed
        self._decodes = decodes
        self._result = result
        self._ended: dict[int, TokenOutput] = {}
        self._others: list[TokenOutput] = []

    @property
    def decodes(self) -> Sequence[Request]:
        """Decodes that got a token; the same list from step to step where they stay the same."""
        if not self.dropped:
            return self._decodes
        return [request for place, request in enumerate(self._decodes) if place not in self.dropped]

    @property
    def readers(self) -> Sequence[Request]:
        """All others that got a token: they have read what they had."""
        return [output.request for output in self._others if output.token_id is not None]

    @property
    def ended(self) -> Sequence[TokenOutput]:
        """Of requests that ended with this step."""
        others = [output for output in self._others if output.finish_reason is not None]
        return [*self._failed, *self._ended.values(), *others]

    def drop(self, places: Iterable[int]) -> None:
        """These decodes' tokens are nobody's."""
        self.dropped.update(places)

    def end(self, place: int, reason: FinishReason) -> None:
        """This decode's token is its last. To be told in the order of rows."""
        self._ended[place] = self._decode(place)._replace(
            finish_reason=reason, stop_token_id=stop_token(self._decodes[place], self._result.token_ids[place], reason)
        )

    def add(self, *outputs: TokenOutput) -> None:
        """Of rows that follow the decodes, and of what follows from all."""
        self._others += outputs

    def __len__(self) -> int:
        return len(self._failed) + len(self._decodes) - len(self.dropped) + len(self._others)

    @overload
    def __getitem__(self, index: int) -> TokenOutput: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenOutput]: ...
    def __getitem__(self, index: int | slice) -> TokenOutput | Sequence[TokenOutput]:
        return list(self)[index]

    def __iter__(self) -> Iterator[TokenOutput]:
        yield from self._failed
        new_output, ended, dropped = tuple.__new__, self._ended, self.dropped
        logprobs = self._result.logprobs or repeat(None)
        columns = zip(self._decodes, self._result.token_ids, logprobs, strict=False)
        for place, (request, token_id, each_logprobs) in enumerate(columns):
            if place in ended:
                yield ended[place]
            elif place not in dropped:
                output = (request, request.sample_index, token_id, each_logprobs, None, None, None, None)
                yield new_output(TokenOutput, output)
        yield from self._others

    def _decode(self, place: int) -> TokenOutput:
        request, logprobs = self._decodes[place], self._result.logprobs
        return TokenOutput(
            request, request.sample_index, self._result.token_ids[place], logprobs[place] if logprobs else None
        )


def stop_token(request: Request, token_id: int, reason: FinishReason | None) -> int | None:
    """The token that ended the output, if one did."""
    return token_id if reason == "stop" and token_id in request.stop_token_ids else None


def ended_by(request: Request, fault: Fault) -> TokenOutput:
    """The end of a request that brought no token."""
    return TokenOutput(request, request.sample_index, None, finish_reason="error", fault=fault)


def new_prompt_logprobs(request: Request, row: ScheduledRow, given: list[TokenLogprobs]) -> list[TokenLogprobs] | None:
    """Those of a row's prompt log-probabilities that were not delivered before a preemption; None if there are none."""
    new = given[max(0, request.num_prompt_logprobs - row.start) :]
    request.num_prompt_logprobs += len(new)
    return new or None
