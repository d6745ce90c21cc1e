"""Sends a workload to a server, at its times of arrival or so many requests at a time, and keeps what became of each request.

A request counts as arrived at its own time, not when the loop came round to sending it: neither a busy server nor a busy client can hide its queue."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from sarathi_jax.client.connection import HttpClient
from sarathi_jax.client.openai_api import Asking, Failure, Message, Prompt, ask
from sarathi_jax.simulation.arrivals import ArrivalQueue
from sarathi_jax.simulation.workloads import RequestShape


@dataclass(slots=True, kw_only=True)
class SentRequest:
    """One request's story; times are seconds after the load began. place: in the workload. num_prompt_tokens, num_output_tokens: by the server's usage, or else
    as asked for, and one a chunk."""

    place: int
    arrival_s: float
    sent_s: float
    end_s: float = 0.0
    token_times_s: Sequence[float] = ()
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    has_usage: bool = False
    failure: Failure | None = None


@dataclass(slots=True)
class LoadRun:
    """What has been sent and has ended so far; whole when `send` returns. num_running: sent and not ended. most_running: at one time.
    begin_s: on `time.perf_counter`."""

    ended: list[SentRequest] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0
    begin_s: float = 0.0


class Load:
    """A workload and where it goes.

    Args:
      shapes: the requests; later rounds of a conversation only with chats.
      prompts: of each, what it adds to the rounds before: token ids or text.
      timeout_s: for each whole answer.
    """

    def __init__(
        self,
        client: HttpClient,
        asking: Asking,
        shapes: Sequence[RequestShape],
        prompts: Sequence[str | Sequence[int]],
        timeout_s: float,
    ) -> None:
        self._client, self._asking, self._timeout_s = client, asking, timeout_s
        self._shapes, self._prompts = shapes, prompts

    async def send(
        self,
        run: LoadRun,
        shapes: Sequence[RequestShape] | None = None,
        *,
        concurrency: int | None = None,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        """Send all and wait for them. When this is cancelled, `run` has what there is.

        Args:
          run: is filled.
          shapes: the same requests with other arrivals.
          concurrency: so many at a time, each as soon as one before it has ended, in place of their times of arrival.
          on_end: called as each ends.
        """
        shapes = self._shapes if shapes is None else shapes
        if concurrency is not None:
            shapes = [shape._replace(arrival_s=0.0) for shape in shapes]
        queue, has_changed = ArrivalQueue(shapes), asyncio.Event()
        talks: dict[int, list[Message]] = {}
        run.begin_s = time.perf_counter()

        async def serve(place: int, arrival_s: float) -> None:
            try:
                request = await self._serve(run.begin_s, place, arrival_s, talks)
                run.ended.append(request)
                if request.failure is None:
                    queue.end(place, request.end_s)
                on_end()
            finally:
                run.num_running -= 1
                has_changed.set()

        async with asyncio.TaskGroup() as tasks:
            while queue or run.num_running:
                now_s = time.perf_counter() - run.begin_s
                is_full = concurrency is not None and run.num_running >= concurrency
                if not is_full and queue.next_arrival_s <= now_s:
                    arrival_s, place = queue.pop()
                    run.num_running += 1
                    run.most_running = max(run.most_running, run.num_running)
                    tasks.create_task(serve(place, arrival_s if concurrency is None else now_s))
                else:
                    has_changed.clear()
                    await _wait(has_changed, queue.next_arrival_s - now_s if queue and not is_full else None)

    async def _serve(
        self, begin_s: float, place: int, arrival_s: float, talks: dict[int, list[Message]]
    ) -> SentRequest:
        shape, prompt = self._shapes[place], self._prompts[place]
        if self._asking.is_chat:
            before = [] if shape.after is None else talks[shape.after]
            prompt = [*before, {"role": "user", "content": prompt}]
        sent_s = time.perf_counter() - begin_s
        reply = await ask(
            self._client, self._asking, cast("Prompt", prompt), shape.num_output_tokens, timeout_s=self._timeout_s
        )
        if self._asking.is_chat:
            talks[place] = [*cast("list[Message]", prompt), {"role": "assistant", "content": reply.text}]
        has_usage = reply.num_output_tokens is not None
        return SentRequest(
            place=place,
            arrival_s=arrival_s,
            sent_s=sent_s,
            end_s=time.perf_counter() - begin_s,
            token_times_s=[each - begin_s for each in reply.token_times_s],
            num_prompt_tokens=shape.num_prompt_tokens if reply.num_prompt_tokens is None else reply.num_prompt_tokens,
            num_output_tokens=len(reply.token_times_s) if reply.num_output_tokens is None else reply.num_output_tokens,
            has_usage=has_usage,
            failure=reply.failure,
        )


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    """Until the event, or for so long."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
