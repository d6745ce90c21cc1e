"""The page without an engine: a small scheduler that works as Sarathi-Serve's does, in real time, behind the two endpoints that the page reads.

    python tests/serve/page/mock_server.py --port 8001 --load 1.5

For work on the page and for its tests. Prints its address in one line when it can be asked. `POST /mock/state` and `/mock/drop` play faults; after
`/mock/slow` steps take ten times as long.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sarathi_jax.serve.page import add_page

ANSWER = """A long prompt is **work for many steps**. Read in one piece, it would keep every running stream waiting. So each step does two things:

1. every running stream gets its *next token*;
2. what is left of the token budget reads a **chunk** of a waiting prompt.

```python
budget = 256
chunk = budget - len(decodes)   # what a prompt may take
```

Nobody stalls, and the device stays busy."""
PACES = {"slow": 10.0, "quick": 1.0}
OTHER_WORDS = [" a", " the", " one", " each", " some", " token", " step", ",", " and", " is"]


@dataclass
class MockRequest:
    """What the mock scheduler knows of a request. done: tokens with K and V; owes: prompt tokens to read before the next output."""

    id: str
    prompt: int
    max_tokens: int
    arrival: float
    done: int = 0
    out: int = 0
    owes: int = 0
    times: list[float] = field(default_factory=list)
    queue: asyncio.Queue[float | None] = field(default_factory=asyncio.Queue)
    gone: bool = False


class MockEngine:
    """Steps of at most `budget` tokens: first one token of every decode, then chunks of prompts in the order of arrival."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.random = args, random.Random(7)
        self.waiting: list[MockRequest] = []
        self.running: list[MockRequest] = []
        self.finished: list[MockRequest] = []
        self.ids, self.numbers = itertools.count(1), itertools.count(1)
        self.listeners: set[asyncio.Queue[dict | None]] = set()
        self.state, self.now, self.cached = "ready", 0.0, 0
        self.pace = 1.0

    def admit(self, prompt: int, max_tokens: int) -> MockRequest:
        request = MockRequest(f"chatcmpl-{next(self.ids):04x}", prompt, max_tokens, time.monotonic(), owes=prompt)
        self.waiting.append(request)
        return request

    def pages(self, request: MockRequest) -> int:
        return math.ceil(request.done / self.args.page_size)

    def used(self) -> int:
        return sum(self.pages(request) for request in self.running)

    def has_room(self) -> bool:
        pages = sum(
            max(self.pages(r), math.ceil((r.done + r.owes) / self.args.page_size))
            for r in [*self.running, self.waiting[0]]
        )
        return len(self.running) < self.args.max_num_seqs and pages < self.args.num_pages * 0.94

    def plan(self) -> tuple[list[tuple[MockRequest, int, bool]], list[str]]:
        preempted, left = [], self.args.budget
        while self.used() + len(self.running) > self.args.num_pages and len(self.running) > 1:
            victim = self.running.pop()
            preempted.append(victim.id)
            victim.owes, victim.done = victim.done + 1, 0
            self.waiting.insert(0, victim)
        decodes = [(request, 1, False) for request in self.running if not request.owes]
        prompts = [request for request in self.running if request.owes]
        if self.args.policy == "vllm" and (prompts or self.waiting) and len(self.running) < self.args.max_num_seqs:
            decodes = []
        rows = decodes
        left -= len(rows)
        while self.waiting and not preempted and self.has_room() and left > sum(p.owes for p in prompts):
            self.running.append(self.waiting.pop(0))
            prompts.append(self.running[-1])
        for request in prompts:
            if left > 0:
                rows.append((request, min(left, request.owes), True))
                left -= rows[-1][1]
        return rows, preempted

    async def step(self) -> None:
        self.running = [request for request in self.running if not request.gone]
        self.waiting = [request for request in self.waiting if not request.gone]
        rows, preempted = self.plan()
        total = sum(count for _, count, _ in rows)
        bucket = next(size for size in (8, 16, 32, 64, 128, 256, 512, 1024, 10**6) if size >= total)
        start = time.monotonic()
        await asyncio.sleep(self.pace * (0.018 + 0.00011 * bucket + self.random.random() * 0.002))
        end = time.monotonic()
        seen = []
        for request, count, is_prefill in rows:
            samples = not is_prefill or count == request.owes
            seen.append([request.id, request.done, count, int(is_prefill), int(samples)])
            request.done += count
            request.owes = max(0, request.owes - count) if is_prefill else 0
            if samples:
                self.token(request, end)
        decode = sum(not row[3] for row in seen)
        step = {"step": next(self.numbers), "start_s": start, "end_s": end, "bucket": f"mixed {bucket}x{self.args.max_num_seqs} greedy",
                "bucket_tokens": bucket, "decode_tokens": decode, "prefill_tokens": total - decode, "preempted": preempted, "rows": seen}  # fmt: skip
        self.send({"kind": "step", "step": step})

    def token(self, request: MockRequest, now: float) -> None:
        request.out += 1
        request.times.append(now)
        request.queue.put_nowait(now)
        if request.out >= request.max_tokens:
            request.queue.put_nowait(None)
            self.running.remove(request)
            self.finished = [*self.finished[-200:], request]
            self.cached = min(self.args.num_pages, self.cached + self.pages(request))

    def send(self, message: dict | None) -> None:
        for listener in self.listeners:
            listener.put_nowait(message)

    async def run(self) -> None:
        next_arrival = time.monotonic()
        while True:
            if self.args.load and time.monotonic() > next_arrival:
                self.admit(int(self.random.paretovariate(0.9) * 60) % 1500 + 12, self.random.randrange(30, 160))
                next_arrival = time.monotonic() + self.random.expovariate(self.args.load)
            if self.state == "ready" and (self.running or self.waiting):
                await self.step()
            else:
                await asyncio.sleep(0.01)

    def counts(self) -> dict:
        used = min(self.used(), self.args.num_pages)
        cached = min(self.cached, (self.args.num_pages - used) * 2 // 3)
        return {
            "queue": {"running": len(self.running), "waiting": len(self.waiting)},
            "kv": {"used": used, "cached": cached, "free": self.args.num_pages - used - cached},
        }

    def latency(self) -> dict:
        recent = [request for request in [*self.finished[-60:], *self.running] if request.times]
        first = [request.times[0] - request.arrival for request in recent]
        gaps = [b - a for request in recent for a, b in itertools.pairwise(request.times)]
        return {"kind": "latency", "ttft_s": percentiles(first), "tbt_s": percentiles(gaps), "output_tokens_per_s": len(self.running) / 0.04,
                "prompt_tokens_per_s": 2310.0 if self.running else 0.0, "prefix_hit_rate": 0.31 if recent else None}  # fmt: skip

    def about(self) -> dict:
        args = self.args
        return {"kind": "engine", "model": "demo", "policy": args.policy, "token_budget": args.budget, "max_num_seqs": args.max_num_seqs,
                "max_model_len": 2048, "page_size": args.page_size, "num_pages": args.num_pages, "tbt_slo_ms": 100, "device": "cpu (mock)",
                "version": "0.1.0", "state": self.state}  # fmt: skip


def percentiles(values: list[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {f"p{q}": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] if ordered else None for q in (50, 90, 99)}


async def events(engine: MockEngine) -> AsyncIterator[str]:
    """Of `/api/steps`: what the engine is, then steps at most 20 times a second, and percentiles once a second."""
    queue: asyncio.Queue[dict | None] = asyncio.Queue()
    engine.listeners.add(queue)
    try:
        yield sse(engine.about())
        last_latency = 0.0
        while True:
            await asyncio.sleep(0.05)
            messages = [queue.get_nowait() for _ in range(queue.qsize())]
            if None in messages:
                return
            for message in messages:
                if message and message["kind"] == "state":
                    yield sse(message)
            steps = [message["step"] for message in messages if message and message["kind"] == "step"]
            if steps:
                yield sse({"kind": "steps", "now_s": time.monotonic(), "steps": steps, **engine.counts()})
            if time.monotonic() - last_latency > 1:
                last_latency = time.monotonic()
                yield sse(engine.latency())
    finally:
        engine.listeners.discard(queue)


def sse(message: object) -> str:
    return f"data: {json.dumps(message)}\n\n"


def words(text: str) -> list[str]:
    """Pieces as a tokenizer makes them: a word with the space before it, or one mark."""
    pieces, piece = [], ""
    for char in text:
        if piece and not (char.isalpha() and (piece[-1].isalpha() or piece == " ")):
            pieces.append(piece)
            piece = ""
        piece += char
    return [*pieces, piece]


async def completion(engine: MockEngine, body: dict, text: str) -> AsyncIterator[str]:
    """The chunks of one streamed chat completion, a token of `text` at each step that the scheduler gives it."""
    rng, pieces = random.Random(body.get("seed") or 1), words(text)
    prompt = sum(len(words(message["content"])) for message in body["messages"]) + 8
    request = engine.admit(prompt, min(body.get("max_tokens") or 4096, 400 if body.get("ignore_eos") else len(pieces)))
    head = {"id": request.id, "object": "chat.completion.chunk", "created": 0, "model": "demo"}
    try:
        yield sse(
            {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
        )
        for piece in itertools.cycle(pieces):
            if await request.queue.get() is None:
                break
            choice = {
                "index": 0,
                "delta": {"content": piece},
                "logprobs": {"content": [logprob(piece, rng)]},
                "finish_reason": None,
            }
            yield sse({**head, "choices": [choice]})
        reason = "stop" if request.max_tokens == len(pieces) else "length"
        last = {"content": [logprob("<|end|>", rng)] if reason == "stop" else []}
        yield sse({**head, "choices": [{"index": 0, "delta": {}, "logprobs": last, "finish_reason": reason}]})
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": request.out,
            "total_tokens": prompt + request.out,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        shares = [{"kind": "prefill", "seconds": 0.2, "num_tokens": 240, "num_requests": 1}]
        late = {"sample": 0, "token": 3, "at_s": 0.5, "gap_s": 0.2, "cause": "prefill", "causes": shares}
        timing = {
            "queue_s": 0.012,
            "prefill_s": request.times[0] - request.arrival,
            "num_preemptions": 1,
            "stalls": [late, {**late, "token": 7}, {**late, "token": 9, "cause": "host"}],
        }
        yield sse({**head, "choices": [], "usage": usage, "timing": timing})
        yield "data: [DONE]\n\n"
    finally:
        request.gone = True


def logprob(piece: str, rng: random.Random) -> dict:
    sure = rng.betavariate(5, 1.1)
    rest, top = 1 - sure, [{"token": piece, "logprob": math.log(sure), "bytes": list(piece.encode())}]
    for other in rng.sample([word for word in OTHER_WORDS if word != piece], 4):
        share = rest * rng.uniform(0.3, 0.7)
        rest -= share
        top.append({"token": other, "logprob": math.log(max(share, 1e-6)), "bytes": list(other.encode())})
    return {**top[0], "top_logprobs": top}


def make_app(args: argparse.Namespace) -> FastAPI:
    engine = MockEngine(args)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(engine.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)
    add_page(app)

    @app.middleware("http")
    async def check_key(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        asked = request.url.path.startswith(("/v1", "/api"))
        if asked and args.api_key and request.headers.get("authorization") != f"Bearer {args.api_key}":
            return error(401, "This server needs an API key: send it as a bearer token.", "invalid_api_key")
        return await call_next(request)

    @app.get("/v1/models")
    async def models() -> dict:
        return {
            "object": "list",
            "data": [{"id": "demo", "object": "model", "created": 0, "owned_by": "mock", "max_model_len": 2048}],
        }

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        last = body["messages"][-1]["content"]
        if "too long" in last:
            return error(
                400,
                "The prompt has 4,096 tokens and the model takes 2,048: send a shorter one.",
                "context_length_exceeded",
            )
        text = last.removeprefix("echo ") if last.startswith("echo ") else ANSWER
        return StreamingResponse(completion(engine, body, text), media_type="text/event-stream")

    @app.get("/api/steps")
    async def steps() -> Response:
        return StreamingResponse(events(engine), media_type="text/event-stream")

    add_play(app, engine)
    return app


def add_play(app: FastAPI, engine: MockEngine) -> None:
    """Faults, and what tests want to know."""

    @app.get("/mock/requests")
    async def requests() -> int:
        return len([request for request in [*engine.running, *engine.waiting] if not request.gone])

    @app.post("/mock/{act}")
    async def play(act: str) -> dict:
        if act == "drop":
            engine.send(None)
        elif act in PACES:
            engine.pace = PACES[act]
        else:
            engine.state = act
            engine.send({"kind": "state", "state": act})
        return {}


def error(status: int, message: str, code: str) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return JSONResponse(body, status_code=status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--load", type=float, default=0.0, help="requests a second that arrive by themselves")
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--max-num-seqs", type=int, default=12)
    parser.add_argument("--num-pages", type=int, default=640)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--policy", default="sarathi", choices=["sarathi", "vllm"])
    parser.add_argument("--api-key", default="")
    args = parser.parse_args()
    server = uvicorn.Server(
        uvicorn.Config(make_app(args), port=args.port, log_level="warning", timeout_graceful_shutdown=1)
    )

    async def serve() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        print(f"http://127.0.0.1:{port}/", flush=True)  # noqa: T201
        await task

    asyncio.run(serve())


if __name__ == "__main__":
    main()
