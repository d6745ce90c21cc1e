"""A server with OpenAI's API, ours or vLLM's, through its streams. The client is in this process, on the same cores: its time is a part of what HTTP costs here."""

import asyncio
import atexit
import time
from contextlib import ExitStack

import msgspec
import uvloop

from benchmarks.peers.load import Answer, Order, Request
from benchmarks.peers.play import Play, serve_loads
from benchmarks.server_process import started
from sarathi_jax.client.connection import HttpClient
from sarathi_jax.client.openai_api import Asking, only_model
from sarathi_jax.client.server_events import EventReader

FIELDS = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


class Choice(msgspec.Struct):
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct):
    choices: list[Choice]


class Load:
    """One load on its way. Request k's stream fills answers[k]."""

    def __init__(self, client: HttpClient, asking: Asking, requests: list[Request]) -> None:
        self._client, self._asking, self._requests = client, asking, requests
        self._begin_s = time.perf_counter()
        self._decoder = msgspec.json.Decoder(Chunk)
        self._is_due = [asyncio.Event() for _ in requests]
        self.answers = [Answer(0.0, [], []) for _ in requests]

    async def send(self) -> None:
        self._call_due()
        async with asyncio.TaskGroup() as tasks:
            for place in range(len(self._requests)):
                tasks.create_task(self._stream(place))

    async def _stream(self, place: int) -> None:
        request, answer, reader = self._requests[place], self.answers[place], EventReader()

        def take(piece: bytes) -> None:
            now_s = time.perf_counter() - self._begin_s
            for data in reader.feed(piece):
                if data != b"[DONE]":
                    for choice in self._decoder.decode(data).choices:
                        answer.token_ids += choice.token_ids or ()
            answer.token_times_s += [now_s] * (len(answer.token_ids) - len(answer.token_times_s))
            if place == 0:
                self._call_due()

        await self._is_due[place].wait()
        answer.arrival_s = time.perf_counter() - self._begin_s
        body = self._asking.body(request.prompt, request.max_tokens)
        reply = await self._client.request("POST", self._asking.path, body, on_data=take)
        if reply.status != 200 or len(answer.token_ids) != request.max_tokens:
            raise RuntimeError(f"{len(answer.token_ids)} of {request.max_tokens} tokens came: {bytes(reply.body)!r}")

    def _call_due(self) -> None:
        for request, is_due in zip(self._requests, self._is_due, strict=True):
            if request.after_tokens <= len(self.answers[0].token_ids):
                is_due.set()


async def play(url: str, requests: list[Request]) -> list[Answer]:
    client = HttpClient(url)
    load = Load(client, Asking(model=await only_model(client), is_chat=False, fields=FIELDS), requests)
    await load.send()
    await client.close()
    return load.answers


def start(order: Order) -> Play:
    stack = ExitStack()
    atexit.register(stack.close)
    server = stack.enter_context(started(order.server, order.port, "/health"))
    return lambda requests: uvloop.run(play(server.url, requests))


if __name__ == "__main__":
    serve_loads(start, ["uvloop", "httptools"])  # the client's
