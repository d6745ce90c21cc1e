"""uvicorn's HTTP protocol with limits that it does not have, on a head's size and time, on chunks of a body, and on connections; and clients that close their side
of a connection to read the rest of a stream."""

import asyncio
from http import HTTPStatus
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.sse import PING

# A client that has closed its side may read on, or has gone: then its machine refuses what is written. A stream has begun by the last look.
LOOK_EVERY_S = 0.05
MAX_LOOKS = 3
PROBE = b"%x\r\n%b\r\n" % (len(PING), PING)
MAX_HEAD_BYTES = 64 * 2**10
MAX_HEADERS = 100
MAX_CHUNKS = 65536


def limited_protocol(config: ServeConfig) -> type[HttpToolsProtocol]:
    """The protocol's class, with a server's limits in it."""
    return type("ServerHttpProtocol", (LimitedHttpProtocol,), {"limits": config})


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. limits: the server's."""

    limits: ClassVar[ServeConfig]
    _is_in_head = True
    _num_head_bytes = 0
    _num_chunks = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(
                ApiError(503, "server_overloaded", "There are too many connections.", headers={"Retry-After": "1"})
            )
            return
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._deadline is None:
                self._begin_head()
        super().data_received(data)
        if self._is_in_head and self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def eof_received(self) -> Any:
        """The client will send no more. Returns: whether the connection stays open."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        self.loop.call_later(LOOK_EVERY_S, self._look_for_client)
        return True

    def _look_for_client(self, num_looks: int = 1) -> None:
        """Write to a stream; of any other answer nothing can be sent before its end, and its client counts as gone."""
        if self.transport.is_closing():
            return
        if self.cycle.response_started and self.cycle.chunked_encoding:
            if not self.flow.write_paused:
                self.transport.write(PROBE)
        elif num_looks >= MAX_LOOKS:
            self.transport.close()
            return
        self.loop.call_later(LOOK_EVERY_S, self._look_for_client, num_looks + 1)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._num_chunks = True, 0

    def on_headers_complete(self) -> None:
        num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        self._end_head()
        if num_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse_head()
            return
        cast("dict[str, Any]", self.scope)["abort"] = self.transport.abort
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_chunks += 1
        if self.transport.is_closing():
            return
        if self._num_chunks > MAX_CHUNKS:
            self._refuse(ApiError(413, "request_too_large", f"A body must have at most {MAX_CHUNKS} chunks."))
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.transport.is_closing():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "invalid_value", msg))

    def _begin_head(self) -> None:
        self._is_in_head = True
        self._deadline = self.loop.call_later(self.limits.header_timeout_s, self._cut_slow_head)

    def _end_head(self) -> None:
        self._is_in_head, self._num_head_bytes = False, 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut_slow_head(self) -> None:
        """A client that sends its head drop by drop gets no answer, nor does one that sends nothing."""
        if not self.transport.is_closing():
            self.transport.abort()

    def _refuse_head(self) -> None:
        message = f"The head of a request must have at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers."
        self._refuse(ApiError(431, "header_too_large", message))

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close."""
        if self.transport.is_closing():
            return
        body = bytes(error.response().body)
        lines = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in error.headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
