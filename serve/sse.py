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
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(value: Mapping[str, Any]) -> bytes:
    """One event with a JSON object."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


class SlowReader(Exception):
    """A client leaves what it gets unread."""


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
        self._close = close
        self._sent_s = 0.0
        self._slow_reader_s = slow_reader_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_all(send))
        try:
            await first_of(sending, receive)
        except SlowReader:
            scope["abort"]()  # what it has not read would keep the connection open
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        pinging = asyncio.create_task(self._ping(send))
        try:
            async for chunk in self._chunks:
                await self._send(send, chunk)
        except ApiError as error:
            await self._send(send, event(error.body))
        finally:
            pinging.cancel()
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, chunk: bytes, *, more: bool = True) -> None:
        """Raises: SlowReader if the client does not take it in time."""
        self._sent_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._slow_reader_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
        except TimeoutError as error:
            raise SlowReader from error

    async def _ping(self, send: Send) -> None:
        """Through proxies that cut what is silent, and to clients that have gone without a word."""
        while True:
            await asyncio.sleep(PING_EVERY_S)
            if time.perf_counter() - self._sent_s >= PING_EVERY_S:
                await send({"type": "http.response.body", "body": PING, "more_body": True})


async def first_of(work: asyncio.Task[None], receive: Receive) -> None:
    """Wait for the work; give it up if the client leaves."""
    leaving = asyncio.create_task(until_disconnect(receive))
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        work.cancel()
    if work.done() and not work.cancelled():
        work.result()


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
