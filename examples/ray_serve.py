"""Replicas of the engine behind one address, with Ray Serve: for more requests than one engine, or one group of processes, can take.

    pip install 'sarathi-jax[ray]'
    python examples/ray_serve.py --replicas 2 --model demo
    curl -N localhost:8000 -d '{"prompt": "12+30=", "max_tokens": 8, "temperature": 0}'

Each replica is a process with an engine of its own, on GPUs of its own (--gpus; 0 runs on CPUs); Ray starts it again when it says that it can't go on. It runs
all its requests together, in one thread that owns the engine; requests wait on asyncio queues.
"""

import argparse
import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NamedTuple

from ray import serve  # pyright: ignore[reportMissingImports]
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sarathi_jax import LLM, SamplingParams
from sarathi_jax.errors import EngineError, RequestError
from sarathi_jax.outputs import StreamEvent

OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")


class Call(NamedTuple):
    """A request on its way to the engine's thread. events: what it gains comes back here, or the error that ended it. has_left: nobody waits for it any more."""

    prompt: str
    params: SamplingParams
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[StreamEvent | Exception]"
    has_left: threading.Event

    def tell(self, what: StreamEvent | Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.events.put_nowait, what)


class Replica:
    """One engine. Its options are `LLM`'s."""

    def __init__(self, **options: Any) -> None:
        self._llm = LLM(**options)
        self._calls: queue.Queue[Call] = queue.Queue()
        self._running: dict[str, Call] = {}
        self._error: Exception | None = None
        threading.Thread(target=self._work, name="engine", daemon=True).start()

    def check_health(self) -> None:
        """Ray asks every few seconds, and starts a replica again whose answer is an error."""
        if self._error is not None:
            raise self._error

    async def __call__(self, request: Request) -> Response:
        """A prompt and options of SamplingParams as JSON; the answer comes as lines of JSON, as it grows."""
        try:
            body = await request.json()
            params = SamplingParams(**{name: body[name] for name in OPTIONS if name in body})
            call = Call(body["prompt"], params, asyncio.get_running_loop(), asyncio.Queue(), threading.Event())
        except (KeyError, TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        self._calls.put(call)
        if self._error is not None:
            call.tell(self._error)
        try:
            first = await call.events.get()
        except asyncio.CancelledError:
            call.has_left.set()
            raise
        if isinstance(first, Exception):
            return JSONResponse({"error": str(first)}, 400 if isinstance(first, RequestError) else 503)
        return StreamingResponse(self._lines(call, first), media_type="application/jsonl")

    async def _lines(self, call: Call, event: StreamEvent | Exception) -> AsyncIterator[str]:
        try:
            while isinstance(event, StreamEvent):
                yield json.dumps({"text": event.text_delta, "finish_reason": event.finish_reason}) + "\n"
                if event.output is not None:
                    return
                event = await call.events.get()
            yield json.dumps({"error": str(event)}) + "\n"
        finally:
            call.has_left.set()

    def _work(self) -> None:
        """The engine's thread: take in what has come, run a step, hand out what it brought."""
        engine = self._llm.engine
        try:
            while True:
                if not engine.has_unfinished:
                    self._add(self._calls.get())
                while not self._calls.empty():
                    self._add(self._calls.get())
                for event in engine.step() if engine.has_unfinished else ():
                    self._hand_out(event)
        except EngineError as error:
            self._error = error
            for call in (*self._running.values(), *self._calls.queue):
                call.tell(error)

    def _hand_out(self, event: StreamEvent) -> None:
        call = self._running.get(event.request_id)
        if call is None:
            return
        has_left = call.has_left.is_set()  # read once: who leaves while being told is aborted at the next event
        if has_left:
            self._llm.engine.abort(event.request_id)
        else:
            call.tell(event)
        if has_left or event.output is not None:
            del self._running[event.request_id]

    def _add(self, call: Call) -> None:
        try:
            self._running[self._llm.engine.add_request(call.prompt, call.params)] = call
        except RequestError as error:
            call.tell(error)


def make_app(options: dict[str, Any], *, replicas: int, gpus: float) -> serve.Application:
    """What Ray Serve runs: `serve.run` it, or name it in a Serve config."""
    deployment = serve.deployment(Replica).options(
        name="sarathi-jax",
        num_replicas=replicas,
        max_ongoing_requests=options.get("max_num_seqs", 128),
        ray_actor_options={"num_gpus": gpus},
    )
    return deployment.bind(**options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--mesh", help="of one replica, as in tensor=4")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of one replica")
    parser.add_argument("--max-num-seqs", type=int, default=128, help="requests that run at a time in one replica")
    args = parser.parse_args()
    options = {"model": args.model, "mesh": args.mesh, "max_num_seqs": args.max_num_seqs}
    serve.run(make_app(options, replicas=args.replicas, gpus=args.gpus), blocking=True)


if __name__ == "__main__":
    main()
