"""One prompt's answer on the front: token ids come from the engine, text goes out. Streamed or not, an answer is made of the same pieces."""

import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from sarathi_jax.outputs import FinishReason, TokenLogprobs
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.admission import check_request
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.request import Request
from sarathi_jax.serve.engine_client import EngineClient
from sarathi_jax.serve.errors import ApiError, of_lost
from sarathi_jax.serve.live_request import LiveRequest, Lost, RequestSpec
from sarathi_jax.serve.messages import EXPLAIN_LIMIT_S, LateToken, TokenEvent
from sarathi_jax.text.output_text import OutputText
from sarathi_jax.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """What a sample gained: text that no later token can change, and the tokens that came. stop_reason: the stop string or id that ended it."""

    sample: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class SampleText:
    """One sample's text in the making. stop_token_ids: those that end it and are no part of its text."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, stop_token_ids: frozenset[int]) -> None:
        self._text = None if tokenizer is None else OutputText(tokenizer, params)
        self._asked_stops = frozenset(params.stop_token_ids)
        self._stop_token_ids = stop_token_ids
        self.has_ended = False

    def push(self, event: TokenEvent) -> Piece:
        """Afterwards `has_ended` says whether the sample is over, by the engine's judgement or by a stop string."""
        text, reason, stop_reason = "", event.finish_reason, None
        for token_id in event.token_ids:
            if reason == "stop" and token_id in self._stop_token_ids:
                stop_reason = token_id if token_id in self._asked_stops else None
            elif self._text is not None:
                text += self._text.push(token_id)
        if self._text is not None:
            if reason is not None and self._text.matched_stop is None:
                text += self._text.finish()
            if self._text.matched_stop is not None:
                reason, stop_reason = "stop", self._text.matched_stop
        self.has_ended = reason is not None
        logprobs = [] if event.logprobs is None else [event.logprobs]
        return Piece(event.sample, text, event.token_ids, logprobs, reason, stop_reason, event.prompt_logprobs)


def check(spec: RequestSpec, limits: SchedulerLimits, eos_token_ids: list[int]) -> RequestSpec:
    """The request with its length resolved, as the engine would check it. Raises: RequestError if it can never be served."""
    room = limits.max_model_len - len(spec.prompt_token_ids)
    params = spec.params if spec.params.max_tokens is not None else replace(spec.params, max_tokens=max(room, 1))
    assert params.max_tokens is not None, "it was just set"
    request = Request(
        spec.request_id,
        spec.prompt_token_ids,
        params,
        arrival_s=spec.arrival_s,
        seed=0,
        max_tokens=params.max_tokens,
        eos_token_ids=eos_token_ids,
    )
    check_request(request, limits)
    return spec._replace(params=params)


class Generation:
    """A request on its way through the engine.

    Args:
      spec: checked; its params may have stop strings.
      deadline_s: on the machine's monotonic clock.
    """

    def __init__(
        self, client: EngineClient, tokenizer: Tokenizer | None, spec: RequestSpec, eos_token_ids: list[int]
    ) -> None:
        params = spec.params
        if params.stop and tokenizer is None:
            raise ApiError(400, "unsupported_value", "stop needs a tokenizer: use stop_token_ids.", param="stop")
        stops = frozenset(params.stop_token_ids).union(() if params.ignore_eos else eos_token_ids)
        self._client = client
        self._samples = [SampleText(tokenizer, params, stops) for _ in range(params.n)]
        self.live: LiveRequest = client.submit(spec._replace(params=replace(params, stop=())))

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.live.spec.prompt_token_ids)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens whose KV was there already; known when the request has ended."""
        return 0 if self.live.done is None else self.live.done.num_prefix_hit_tokens

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """All that came since the last time, until every sample has ended. Raises: ApiError if one can't end."""
        while not all(sample.has_ended for sample in self._samples):
            events = await self.live.take()
            pieces = [piece for event in events if (piece := self._push(event)) is not None]
            if pieces:
                yield pieces
            if self.live.lost is not None:
                raise of_lost(self.live.lost)

    async def timing(self) -> dict[str, Any]:
        """Seconds: until the first step, from there to the first token, and all; and which tokens came late. None: not known, or there was none."""
        live, now_s = self.live, time.perf_counter()
        queue_s = None if live.done is None else live.done.scheduling_delay_s
        ttft_s = None if live.first_token_s is None else live.first_token_s - live.spec.arrival_s
        await live.wait_explained(EXPLAIN_LIMIT_S)
        return {
            "queue_s": queue_s,
            "prefill_s": None if queue_s is None or ttft_s is None else ttft_s - queue_s,
            "ttft_s": ttft_s,
            "e2e_s": now_s - live.spec.arrival_s,
            "num_preemptions": 0 if live.done is None else live.done.num_preemptions,
            "num_engine_restarts": live.num_restarts,
            "stalls": None if live.late is None else [stall(token) for token in live.late],
        }

    def close(self) -> None:
        """Idempotent; what has not ended is aborted."""
        self._client.leave(self.live)

    def _push(self, event: TokenEvent) -> Piece | None:
        sample = self._samples[event.sample]
        if sample.has_ended:
            return None
        if event.error is not None:
            raise of_lost(Lost(event.error, ""))
        piece = sample.push(event)
        if sample.has_ended and event.finish_reason is None:
            self._client.end_sample(self.live, event.sample)
        return piece


def stall(late: LateToken) -> dict[str, Any]:
    """A late token as an answer has it: of other requests there is a count, and nothing else."""
    return {
        "sample": late.sample,
        "token": late.token,
        "at_s": late.at_s,
        "gap_s": late.gap_s,
        "cause": late.causes[0].kind if late.causes else None,
        "causes": [msgspec.structs.asdict(cause) for cause in late.causes],
    }


def joined(pieces: list[Piece]) -> Piece:
    """Several pieces of one sample as one."""
    last = pieces[-1]
    return Piece(
        last.sample,
        "".join(piece.text for piece in pieces),
        list(itertools.chain.from_iterable(piece.token_ids for piece in pieces)),
        list(itertools.chain.from_iterable(piece.logprobs for piece in pieces)),
        last.finish_reason,
        last.stop_reason,
        next((piece.prompt_logprobs for piece in pieces if piece.prompt_logprobs is not None), None),
    )
