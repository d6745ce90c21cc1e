"""GET /api/steps: the engine's steps as they happen, as server-sent events; what the page draws."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from sarathi_jax import __version__
from sarathi_jax.serve.engine_client import EngineState
from sarathi_jax.serve.front import Front
from sarathi_jax.serve.messages import Step, Steps
from sarathi_jax.serve.sse import EventStream, event

LATENCY_EVERY_S = 1.0
MAX_WAITING_EVENTS = 200  # of a watcher that does not read: the oldest ones are left out


def steps_router(front: Front) -> APIRouter:
    router = APIRouter()

    @router.get("/api/steps", response_class=StreamingResponse, summary="The engine's steps as they happen.")
    async def steps() -> Response:
        front.check_ready()
        watcher = Watcher(front)
        return EventStream(watcher.events(), slow_reader_s=front.config.slow_reader_timeout_s, close=watcher.close)

    return router


class Watcher:
    """One client that watches."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING_EVENTS)
        self._news = asyncio.Event()
        self._client = front.client
        self._client.on_steps.append(self._take_steps)
        self._client.on_state.append(self._take_state)
        self._client.watch(is_on=True)

    def close(self) -> None:
        self._client.on_steps.remove(self._take_steps)
        self._client.on_state.remove(self._take_state)
        self._client.watch(is_on=False)

    async def events(self) -> AsyncIterator[bytes]:
        """Until the client leaves, or the server ends."""
        yield event(self._engine())
        next_latency_s = 0.0
        while not self._front.is_draining:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LATENCY_EVERY_S):
                    await self._news.wait()
            self._news.clear()
            while self._waiting:
                yield event(self._waiting.popleft())
            if time.perf_counter() >= next_latency_s:
                next_latency_s = time.perf_counter() + LATENCY_EVERY_S
                yield event({"kind": "latency", **self._front.latency.summary()})
        yield event({"kind": "state", "state": "draining"})

    def _engine(self) -> dict[str, Any]:
        facts = self._front.facts
        limits = facts.limits
        return {
            "kind": "engine",
            "model": facts.model,
            "policy": facts.policy,
            "token_budget": limits.token_budget,
            "max_num_seqs": limits.max_num_seqs,
            "max_model_len": limits.max_model_len,
            "page_size": limits.page_size,
            "stages": limits.num_microbatches,
            "num_pages": limits.num_pages * facts.num_replicas,
            "tbt_slo_ms": facts.tbt_slo_ms,
            "device": ", ".join(sorted(set(facts.devices))),
            "version": __version__,
            "state": self._front.state,
        }

    def _take_state(self, state: EngineState) -> None:
        self._put({"kind": "state", "state": state})

    def _take_steps(self, message: Steps) -> None:
        self._put(
            {
                "kind": "steps",
                "now_s": message.now_s,
                "steps": [step_fields(step) for step in message.steps],
                "queue": {"running": message.num_running, "waiting": message.num_waiting},
                "kv": {
                    "used": message.num_used_pages,
                    "cached": message.num_cached_pages,
                    "free": message.num_free_pages,
                },
            }
        )

    def _put(self, value: dict[str, Any]) -> None:
        self._waiting.append(value)
        self._news.set()


def step_fields(step: Step) -> dict[str, Any]:
    """A step as the page reads it."""
    return {
        "step": step.step,
        "replica": step.replica,
        "start_s": step.start_s,
        "end_s": step.end_s,
        "bucket": step.bucket,
        "bucket_tokens": step.bucket_tokens,
        "decode_tokens": step.num_decode_tokens,
        "prefill_tokens": step.num_prefill_tokens,
        "preempted": step.preempted,
        "rows": [
            [row.request_id, row.start, row.num_tokens, int(row.is_prefill), int(row.does_sample)] for row in step.rows
        ],
    }
