"""What all routes share: the engine's client, the model's texts, limits and options; and the way of a request from its fields to its answer."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.serve.admission import Admission, Ticket
from sarathi_jax.serve.answer import Answer
from sarathi_jax.serve.body import read_body
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.engine_client import EngineClient
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.generation import Generation, check
from sarathi_jax.serve.latency import RecentLatency
from sarathi_jax.serve.live_request import RequestSpec
from sarathi_jax.serve.messages import EngineFacts
from sarathi_jax.serve.metrics import Metrics
from sarathi_jax.serve.output_form import FormChecker
from sarathi_jax.serve.prompts import Prompts
from sarathi_jax.serve.sampling import SamplingReader, model_defaults
from sarathi_jax.serve.schemas import SamplingBody
from sarathi_jax.serve.token_texts import TokenTexts
from sarathi_jax.text.tool_calls import ToolCallFormat

type FrontState = Literal["starting", "ready", "restarting", "draining", "dead"]


class Front:
    """One server's front. Its texts are there when the model is found, its facts when the engine is ready."""

    def __init__(self, config: ServeConfig, client: EngineClient, keys: Mapping[bytes, str]) -> None:
        self.config = config
        self.client = client
        self.latency = RecentLatency()
        client.observers.append(self.latency)
        self.num_keys = len(keys)
        self.admission = Admission(config, len(keys))
        self.metrics = Metrics(config.metrics_prefix, client, self.admission)
        self.created = int(time.time())
        self.is_draining = False
        self.token_texts = TokenTexts(None)
        self._prompts: Prompts | None = None
        self.tool_format: ToolCallFormat | None = None
        self._reader: SamplingReader | None = None
        self._forms: FormChecker | None = None

    async def prepare(self) -> None:
        """Load the model's texts when it is found, and learn its limits when it is ready. Raises: ModelError."""
        folder = await self.client.folder
        self._prompts = await asyncio.to_thread(Prompts, folder)
        defaults = {} if self.config.generation_config == "none" else model_defaults(folder)
        self.token_texts = TokenTexts(self._prompts.tokenizer)
        self.tool_format = self._prompts.tool_format(self.config.tool_call_format)
        self._reader = SamplingReader(defaults, self.config.max_samples)
        await self.client.ready.wait()
        facts = self.facts
        self._forms = FormChecker(folder, facts.limits.vocab_size, facts.eos_token_ids)
        self.admission.num_slots = facts.limits.max_num_seqs * facts.num_replicas
        self.metrics.begin(self.model_names[0])

    def close(self) -> None:
        for part in (self._prompts, self._forms):
            if part is not None:
                part.close()

    @property
    def state(self) -> FrontState:
        return "draining" if self.is_draining else self.client.state

    @property
    def facts(self) -> EngineFacts:
        assert self.client.facts is not None, "the engine has been ready"
        return self.client.facts

    @property
    def limits(self) -> SchedulerLimits:
        """The engine's, with the tokenizer's ids alone: those beyond are padding of the model's tables, and mean nothing."""
        limits, tokenizer = self.facts.limits, self.prompts.tokenizer
        if tokenizer is None or tokenizer.vocab_size >= limits.vocab_size:
            return limits
        return replace(limits, vocab_size=tokenizer.vocab_size)

    @property
    def prompts(self) -> Prompts:
        assert self._prompts is not None, "the model has been found"
        return self._prompts

    @property
    def reader(self) -> SamplingReader:
        assert self._reader is not None, "the model has been found"
        return self._reader

    @property
    def forms(self) -> FormChecker:
        assert self._forms is not None, "the engine has been ready"
        return self._forms

    @property
    def model_names(self) -> tuple[str, ...]:
        return self.config.served_model_name or (self.facts.model,)

    @property
    def max_prompt_tokens(self) -> int:
        return self.facts.limits.max_model_len - 1

    async def read[M: BaseModel](self, request: Request, model: type[M]) -> M:
        """A request's body as `model`, if the request could be let in now; until it has come whole it takes nobody's place. Raises: ApiError."""
        self.check_ready()
        self.admission.check_room(key_of(request))
        body = await read_body(request, model)
        request.scope["close_body"]()
        return body

    def enter(self, request: Request) -> Ticket:
        """Let a request in. Raises: ApiError if it can't be served now."""
        self.check_ready()
        return self.admission.enter(key_of(request))

    def check_ready(self) -> None:
        """Raises: ApiError 503 while there is no engine to serve with: another server may have one."""
        if self.is_draining:
            message = "The server is shutting down."
            raise ApiError(503, "server_shutting_down", message, headers={"Retry-After": "5", "Connection": "close"})
        if self.client.state != "ready" or self._forms is None:
            message = f"The engine is not available ({self.client.state}). Try again in a moment."
            raise ApiError(503, "engine_unavailable", message, headers={"Retry-After": "2"})

    def check_model(self, name: str) -> None:
        """Raises: ApiError 404 if this is not the model that is served."""
        if name not in self.model_names:
            shown = name if len(name) <= 64 else name[:61] + "..."
            message = f"The model {shown!r} does not exist. This server has {', '.join(self.model_names)}."
            raise ApiError(404, "model_not_found", message, param="model")

    def answer(
        self,
        request: Request,
        ticket: Ticket,
        body: SamplingBody,
        prompts: Sequence[list[int]],
        params: SamplingParams,
    ) -> Answer:
        """Hand prompts to the engine. Raises: ApiError, RequestError if one of them can't be served: none is started then."""
        arrival_s = float(request.scope.get("arrival_s", time.perf_counter()))
        deadline_s = arrival_s + self._seconds(request, body)
        if time.perf_counter() >= deadline_s:
            raise ApiError(504, "deadline_exceeded", "The request's deadline has passed before it could begin.")
        tenant, limits = key_of(request), self.limits
        specs = [
            check(
                RequestSpec(
                    uuid.uuid4().hex,
                    token_ids,
                    params,
                    arrival_s,
                    cache_salt=f"{tenant}/{body.cache_salt or ''}",
                    slo_class=body.slo_class or "interactive",
                    client=tenant,
                    priority=body.priority or 0,
                    wants_timing=bool(body.timing),
                ),
                limits,
                self.facts.eos_token_ids,
            )
            for token_ids in prompts
        ]
        self.admission.add_tokens(ticket, sum(map(len, prompts)))
        eos_token_ids, tokenizer = self.facts.eos_token_ids, self.prompts.tokenizer
        generations = [Generation(self.client, tokenizer, spec, eos_token_ids) for spec in specs]
        return Answer(self.admission, ticket, generations, deadline_s)

    def _seconds(self, request: Request, body: SamplingBody) -> float:
        """How long a request may take."""
        limits = [self.config.request_timeout_s]
        if body.deadline_ms is not None:
            limits.append(body.deadline_ms / 1e3)
        header = request.headers.get("x-request-timeout-ms")
        if header is not None:
            if not (header.isascii() and header.isdecimal() and int(header[:12]) > 0):
                raise ApiError(
                    400, "invalid_value", "X-Request-Timeout-Ms must be a whole number of milliseconds above 0."
                )
            limits.append(int(header[:12]) / 1e3)
        return min(limits)


def key_of(request: Request) -> str:
    """Which client asks, by the name of its key; "" where there are no keys."""
    return str(request.scope.get("client_key", ""))


def usage(num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int | None = None) -> dict[str, Any]:
    """As OpenAI counts. num_cached_tokens: None: not known yet."""
    counts: dict[str, Any] = {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }
    if num_cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": num_cached_tokens}
    return counts
