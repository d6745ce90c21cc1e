"""A request that the engine works on, as the front holds it: all that is needed to go on with it on another engine, and what has come and was not taken yet."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from sarathi_jax.outputs import FinishReason
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.serve.messages import Add, Done, LateToken, TokenEvent


class RequestSpec(NamedTuple):
    """A request as the front has checked it. params: with a seed, and without stop strings. cache_salt: with the client's own part in it."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_s: float
    cache_salt: str = ""
    slo_class: str = "interactive"
    client: str = ""
    priority: int = 0
    wants_timing: bool = False


class Lost(NamedTuple):
    """The engine has nothing more to say of a request, and it has not ended. code: of the error's body. param: the field at fault."""

    code: str
    message: str
    param: str | None = None


class LiveRequest:
    """Events go in on one side, as the engine sends them, and are taken on the other, as fast as the client reads; all on one event loop.

    token_ids: of each sample, all that have come. done: the engine's last word, when there is one. first_token_s: on the machine's monotonic clock.
    num_restarts: of the engine, while the request was under way. reasons: why each sample ended; None: it has not.
    late: tokens that came late, once the engine has explained them; None: nobody knows.
    """

    def __init__(self, number: int, spec: RequestSpec) -> None:
        self.number = number
        self.spec = spec
        self.token_ids: list[list[int]] = [[] for _ in range(spec.params.n)]
        self.done: Done | None = None
        self.lost: Lost | None = None
        self.first_token_s: float | None = None
        self.num_restarts = 0
        self.reasons: list[FinishReason | None] = [None] * spec.params.n
        self.late: list[LateToken] | None = None
        self._last_s: list[float | None] = [None] * spec.params.n
        self._has_prompt_logprobs = False
        self._events: list[TokenEvent] = []
        self._news = asyncio.Event()
        self._explained = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.lost is not None or self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether all samples have come to an end; the engine knows nothing of the request then."""
        return None not in self.reasons

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))

    @property
    def last_token_s(self) -> float | None:
        """On the machine's monotonic clock; None: there is none."""
        return max(filter(None, self._last_s), default=None)

    def push(self, event: TokenEvent, now_s: float) -> float | None:
        """Take in what came. Returns: seconds since the sample's token before; None if this is its first one, or none came."""
        gap_s = None
        if event.token_ids:
            self.token_ids[event.sample] += event.token_ids
            before_s, self._last_s[event.sample] = self._last_s[event.sample], now_s
            gap_s = None if before_s is None else now_s - before_s
            if self.first_token_s is None:
                self.first_token_s = now_s
        self._has_prompt_logprobs = self._has_prompt_logprobs or event.prompt_logprobs is not None
        if event.finish_reason is not None:
            self.reasons[event.sample] = event.finish_reason
        if event.done is not None:
            first = self.done or event.done  # another engine finds other pages
            self.done = Done(first.num_prefix_hit_tokens, event.done.num_preemptions, first.scheduling_delay_s)
        self._events.append(event)
        self._news.set()
        return gap_s

    def end_sample(self, sample: int) -> None:
        """A sample's text is complete: nothing more is wanted of it."""
        self.reasons[sample] = "stop"

    def explain(self, late: list[LateToken] | None) -> None:
        """The engine has said which tokens came late, and why."""
        self.late = late
        self._explained.set()

    async def wait_explained(self, limit_s: float) -> None:
        """Wait until it has, but not for long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._explained.wait(), limit_s)

    def lose(self, lost: Lost) -> None:
        """Nothing more will come, and the request has not ended."""
        if not self.is_over:
            self.lost = lost
            self._news.set()

    async def take(self) -> list[TokenEvent]:
        """What has come since the last call; waits until there is something. Empty: the request is lost."""
        if not self._events and self.lost is None:
            self._news.clear()
            await self._news.wait()
        events, self._events = self._events, []
        return events

    def adds(self) -> Iterator[Add]:
        """What an engine has to be told to go on where the one before it was: of each sample that has not ended what it brought. A sample that brought nothing
        while others did begins anew, from a seed of its own, which is what it had."""
        if not self.num_tokens and not any(self.reasons):
            yield self._add(self.spec.params, None, [])
            return
        params = self.spec.params
        assert params.seed is not None, "the front gives each request a seed"
        for sample, token_ids in enumerate(self.token_ids):
            if self.reasons[sample] is None:
                seed = (params.seed + sample) % 2**63
                prompt_logprobs = None if self._has_prompt_logprobs or sample else params.prompt_logprobs
                own = replace(params, n=1, seed=seed, prompt_logprobs=prompt_logprobs)
                yield self._add(own, sample, token_ids)

    def _add(self, params: SamplingParams, sample: int | None, output_token_ids: list[int]) -> Add:
        spec = self.spec
        return Add(
            number=self.number,
            request_id=spec.request_id,
            prompt_token_ids=spec.prompt_token_ids,
            params=params,
            arrival_s=spec.arrival_s,
            cache_salt=spec.cache_salt,
            slo_class=spec.slo_class,
            client=spec.client,
            priority=spec.priority,
            sample=sample,
            output_token_ids=output_token_ids,
            wants_timing=spec.wants_timing,
        )
