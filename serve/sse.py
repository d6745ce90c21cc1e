"""Server-sent events: a stream that notices a client that leaves, or does not read, and says something when there is nothing to say."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sarathi_jax.serve.errors import ApiError

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
PING_EVERY_S = 15.0
LOOK_EVERY_S = 1.0
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


# Characters that end a line for clients that split text in place of bytes, and that JSON does not escape.
LINE_ENDS = {each.encode(): f"\\u{ord(each):04x}".encode() for each in "\x85\u2028\u2029"}


def one_line(value: Any) -> bytes:
    """JSON that no client takes for several lines."""
    data = orjson.dumps(value)
    for end, escaped in LINE_ENDS.items():
        if end in data:
            data = data.replace(end, escaped)
    return data


def event(value: Mapping[str, Any]) -> bytes:
    """One event with a JSON object."""
    return b"data: " + one_line(value) + b"\n\n"


class EventStream(Response):
    """Sends what `chunks` yields; an ApiError from it becomes the last event.

    Args:
      slow_reader_s: how long one chunk may wait for the client to read.
      close: called in the end, whatever happens, also if no chunk was asked for.
    """

    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self, chunks: AsyncIterator[bytes], *, slow_reader_s: float, close: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._chunks = chunks
        self._slow_reader_s = slow_reader_s
        self._close = close
        self._is_sending = False
        self._sent_s = time.perf_counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        tasks = [
            asyncio.create_task(self._send_all(send)),
            asyncio.create_task(self._look_after(send)),
            asyncio.create_task(until_disconnect(receive)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self._close()
        if tasks[0].done():
            tasks[0].result()
        elif tasks[1].done():
            scope["abort"]()  # what the client has not read would keep the connection open
            await until_disconnect(receive)

    async def _send_all(self, send: Send) -> None:
        try:
            async for chunk in self._chunks:
                await self._send(send, chunk)
        except ApiError as error:
            await self._send(send, event(error.body))
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, chunk: bytes, *, more: bool = True) -> None:
        self._is_sending, self._sent_s = True, time.perf_counter()
        await send({"type": "http.response.body", "body": chunk, "more_body": more})
        self._is_sending = False

    async def _look_after(self, send: Send) -> None:
        """Through proxies that cut what is silent, and to clients that have gone without a word. Ends when the client leaves unread what it was sent."""
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self._slow_reader_s))
            silent_s = time.perf_counter() - self._sent_s
            if self._is_sending:
                if silent_s > self._slow_reader_s:
                    return
            elif silent_s >= PING_EVERY_S:
                await self._send(send, PING)


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
