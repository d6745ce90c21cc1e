"""A small OpenAI-compatible server whose delays, counts and faults a test sets: what clients are held against."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn


class FakeServer:
    """Answers every request with as many tokens as it asks for: the first after `first_s`, each further one after `gap_s`.

    usage: `continuous`, `final` or `none`. refuses: fields that are answered with 400. statuses: of the next answers, in place of 200. fault: `error_event`,
    `cut`, `json` or `silent`. line_s: each request is served alone for so long before its first token. A prompt of text counts 2 tokens a letter and 7 around each.
    """

    def __init__(self) -> None:
        self.url = ""
        self.first_s, self.gap_s, self.chunk_tokens = 0.0, 0.0, 1
        self.usage, self.key, self.fault = "continuous", "", ""
        self.refuses: set[str] = set()
        self.statuses: list[int] = []
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most_running = 0
        self.closes_connections = False
        self.line_s, self.line = 0.0, asyncio.Lock()
        self.ports: set[int] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.ports.add(scope["client"][1])
        headers = dict(scope["headers"])
        body = b""
        while (message := await receive()).get("more_body") or message.get("body"):
            body += message["body"]
            if not message.get("more_body"):
                break
        if self.key and headers.get(b"authorization") != f"Bearer {self.key}".encode():
            await self.refuse(send, 401, "the API key must be right")
        elif scope["path"] == "/v1/models":
            await self.answer(send, 200, {"data": [{"id": "fake-model"}]})
        elif scope["path"] in ("/v1/completions", "/v1/chat/completions"):
            await self.complete(send, json.loads(body), "chat" in scope["path"])
        else:
            await self.refuse(send, 404, "no such path")

    async def answer(self, send: Any, status: int, value: dict[str, Any]) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(value).encode()})

    async def refuse(self, send: Any, status: int, message: str) -> None:
        await self.answer(send, status, {"error": {"message": message, "type": "x", "param": None, "code": None}})

    async def complete(self, send: Any, body: dict[str, Any], is_chat: bool) -> None:
        self.bodies.append(body)
        asked = {*body, *(body.get("stream_options") or {})}
        if asked & self.refuses:
            return await self.refuse(send, 400, f"unknown field {min(asked & self.refuses)}")
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            return await self.refuse(send, status, f"status {status}")
        if self.fault == "json":
            return await self.answer(send, 200, {"choices": []})
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.stream(send, body, is_chat)
        finally:
            self.running -= 1

    async def stream(self, send: Any, body: dict[str, Any], is_chat: bool) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        if self.closes_connections:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(value: Any) -> None:
            data = value if isinstance(value, str) else json.dumps(value)
            event = f": ping\n\ndata: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": True})

        if is_chat:
            await say(self.chunk({"delta": {"role": "assistant", "content": ""}}, body, 0))
        if self.line_s:
            async with self.line:
                await asyncio.sleep(self.line_s)
        due_s, num_tokens = time.perf_counter() + self.first_s, body.get("max_tokens") or 3
        for done in range(0, num_tokens, self.chunk_tokens):
            await asyncio.sleep(due_s - time.perf_counter())
            due_s += self.gap_s
            if done and self.fault == "error_event":
                return await say({"error": {"message": "it broke", "type": "server_error"}})
            if done and self.fault == "cut":
                return await send({"type": "http.response.body", "body": b""})
            if done and self.fault == "silent":
                await asyncio.sleep(30)
            count = min(done + self.chunk_tokens, num_tokens)
            text = "".join(f"t{each} " for each in range(done, count))
            choice: dict[str, Any] = {"delta": {"content": text}} if is_chat else {"text": text}
            choice["finish_reason"] = "length" if count == num_tokens else None
            await say(self.chunk(choice, body, count))
        if self.usage != "none" and (body.get("stream_options") or {}).get("include_usage"):
            await say({"choices": [], "usage": usage_of(body, num_tokens)})
        await say("[DONE]")
        await send({"type": "http.response.body", "body": b""})

    def chunk(self, choice: dict[str, Any], body: dict[str, Any], count: int) -> dict[str, Any]:
        is_asked = (body.get("stream_options") or {}).get("continuous_usage_stats")
        usage = {"usage": usage_of(body, count)} if self.usage == "continuous" and is_asked else {}
        return {"id": "x", "choices": [{"index": 0, **choice}], **usage}


def usage_of(body: dict[str, Any], count: int) -> dict[str, int]:
    texts = [each["content"] for each in body["messages"]] if "messages" in body else [body["prompt"]]
    prompt = sum(2 * len(each.split()) + 7 if isinstance(each, str) else len(each) for each in texts)
    return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("SARATHI_JAX_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeServer()
    # Without its access log, as the server has it: loggers stay the same whichever of the two a worker tests first.
    config = uvicorn.Config(
        fake, port=0, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=0
    )
    process = uvicorn.Server(config)
    thread = threading.Thread(target=process.run)
    thread.start()
    while not process.started:
        time.sleep(0.005)
    fake.url = f"http://127.0.0.1:{process.servers[0].sockets[0].getsockname()[1]}"
    yield fake
    process.should_exit = process.force_exit = True
    thread.join()
