"""HTTP/1.1 requests on an event loop, with bodies handed over as they come in, on connections that are used again.

Why not a library: a load generator must not be what it measures. At 2,000 streamed chunks a second from 64 streams, with uvloop, httpx2 took 107 us of processor
time a chunk, 21 % of a core; httptools' parser on an asyncio protocol took 19 us, and all that `bench serve` does with a chunk 25 us, 5 % of a core. So only the
parser is a library's. There are no redirects, no proxies and no cookies.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import SplitResult, urlsplit

import httptools

from sarathi_jax.errors import ConfigError

CONNECT_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 64 * 2**20  # of an answer that is no stream


class ConnectionFailed(Exception):
    """No answer, or not all of it. kind: `connect`, `timeout` or `disconnect`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class Answer:
    """headers: by lower-case name. body: empty where it was streamed."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and self.headers.get("content-type", "").startswith("text/event-stream")


class HttpClient:
    """A server's address, and connections to it. For one event loop.

    Args:
      url: of the server; a path in it goes before each request's, but for a `/v1` at its end, which the paths have themselves.
      headers: sent with each request.
    Raises: ConfigError if the url is none.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = _read_url(url)
        self._prefix = self.url.path.rstrip("/").removesuffix("/v1")
        self._ssl = ssl.create_default_context() if self.url.scheme == "https" else None
        host = self.url.netloc.rpartition("@")[2]
        fixed = {"host": host, "accept": "*/*", "content-type": "application/json", **(headers or {})}
        if any("\r" in text or "\n" in text for pair in fixed.items() for text in pair):
            raise ConfigError("a header must be one line, got a line break in an API key or a header: correct it.")
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self._idle: list[_Connection] = []

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        on_data: Callable[[bytes], None] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """One request and the whole of its answer.

        Args:
          on_data: called with each piece of a stream of events, as it comes in; all other bodies are in the answer.
          timeout_s: for all of it.
        Raises: ConnectionFailed; what `on_data` raises.
        """
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}\r\n\r\n".encode()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    connection, is_new = await self._connection()
                    try:
                        return await self._exchange(connection, head + body, on_data)
                    except ConnectionFailed:
                        # A server may close a connection that nobody used just when a request goes out on it.
                        if is_new or connection.has_answered:
                            raise
        except TimeoutError as error:
            raise ConnectionFailed("timeout", f"no whole answer within {timeout_s:g} s") from error

    async def close(self) -> None:
        """Leave all connections."""
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(0)  # the loop closes them in its next turn

    async def _exchange(
        self, connection: "_Connection", data: bytes, on_data: Callable[[bytes], None] | None
    ) -> Answer:
        is_reusable = False
        try:
            answer = await connection.exchange(data, on_data)
            is_reusable = connection.can_be_used_again
            return answer
        finally:
            if is_reusable:
                self._idle.append(connection)
            else:
                connection.close()

    async def _connection(self) -> "tuple[_Connection, bool]":
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_lost:
                return connection, False
        host, port = self.url.hostname or "", self.url.port or (443 if self._ssl else 80)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, host, port, ssl=self._ssl)
        except TimeoutError as error:
            raise ConnectionFailed("connect", f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
        except OSError as error:
            raise ConnectionFailed("connect", f"no connection ({error.strerror or error})") from error
        return connection, True


class _Connection(asyncio.Protocol):
    """One request at a time. The parser calls the methods that begin with `on_`."""

    def __init__(self) -> None:
        self.is_lost = False
        self.can_be_used_again = False
        self.has_answered = False
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Answer] | None = None

    async def exchange(self, data: bytes, on_data: Callable[[bytes], None] | None) -> Answer:
        """Raises: ConnectionFailed; what `on_data` raises."""
        assert self._transport is not None, "a connection that was made"
        self._done = asyncio.get_running_loop().create_future()
        self._answer, self._on_data, self._parser = Answer(), on_data, httptools.HttpResponseParser(self)
        self.can_be_used_again = self.has_answered = False
        if self.is_lost:
            raise ConnectionFailed("disconnect", "the server closed the connection")
        self._transport.write(data)
        return await self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._done is None or self._done.done():
            return
        has_length = {"content-length", "transfer-encoding"} & self._answer.headers.keys()
        if exc is None and self._answer.status and not has_length:
            self._done.set_result(self._answer)  # the end of the connection is the end of such a body
        else:
            self._fail(ConnectionFailed("disconnect", f"the server closed the connection ({exc or 'in mid-answer'})"))

    def data_received(self, data: bytes) -> None:
        self.has_answered = True
        if self._done is None or self._done.done():
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback raised comes wrapped
            is_own = isinstance(error, httptools.HttpParserCallbackError) and isinstance(cause, Exception)
            self._fail(cause if is_own and cause else ConnectionFailed("disconnect", f"no HTTP answer ({error})"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._on_data is not None and self._answer.is_stream:
            self._on_data(body)
            return
        self._answer.body += body
        if len(self._answer.body) > MAX_BODY_BYTES:
            raise ConnectionFailed("disconnect", f"an answer of more than {MAX_BODY_BYTES} bytes")

    def on_message_complete(self) -> None:
        if self._answer.status < 200:  # 100 Continue: the answer itself follows
            self._answer = Answer()
            return
        self.can_be_used_again = self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._answer)

    def _fail(self, error: BaseException) -> None:
        assert self._done is not None, "something was asked"
        if not self._done.done():
            self._done.set_exception(error)


def _read_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        is_port = parts.port is None or parts.port > 0  # asking raises if it is none
    except ValueError:
        parts, is_port = SplitResult("", "", "", "", ""), False
    if not is_port or parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in url):
        raise ConfigError(f"a server's URL must be like http://127.0.0.1:8000, got {url!r}: correct it.")
    return parts
