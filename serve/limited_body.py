"""Bodies on their way in: each up to its limits of size and time, and all together up to a limit of memory."""

import asyncio
import time

from starlette.types import Message, Receive

from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.errors import ApiError

NUM_LARGEST_BODIES = 16  # that fit in at a time; others are small, or wait elsewhere


class BodyRoom:
    """Memory for bodies of requests that have not been let in. A client that sends slowly takes nothing else from anybody."""

    def __init__(self, config: ServeConfig) -> None:
        self.max_bytes = NUM_LARGEST_BODIES * config.max_body_bytes
        self.num_bytes = 0


class LimitedBody:
    """Hands one body on. To be closed when it has been read, or nobody reads it any more."""

    def __init__(self, receive: Receive, config: ServeConfig, room: BodyRoom) -> None:
        self._receive = receive
        self._room = room
        self._max_bytes = config.max_body_bytes
        self._timeout_s = config.body_timeout_s
        self._num_bytes = self._num_bytes_held = 0
        self._is_whole = False
        self._end_s = time.perf_counter() + config.body_timeout_s

    async def receive(self) -> Message:
        """Raises: ApiError 408, 413, or 503 if too much is on its way in."""
        if self._is_whole:
            return await self._receive()  # what comes now is that the client leaves
        try:
            async with asyncio.timeout(max(self._end_s - time.perf_counter(), 0.0)):
                message = await self._receive()
        except TimeoutError as error:
            text = f"The body must be sent within {self._timeout_s:g} s."
            raise ApiError(408, "request_timeout", text, headers={"Connection": "close"}) from error
        self._hold(len(message.get("body", b"")))
        self._is_whole = not message.get("more_body", False)
        return message

    def close(self) -> None:
        """What came is counted elsewhere now, or gone. Idempotent."""
        self._room.num_bytes -= self._num_bytes_held
        self._num_bytes_held = 0

    def _hold(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        self._num_bytes_held += num_bytes
        self._room.num_bytes += num_bytes
        if self._room.num_bytes > self._room.max_bytes:
            text = "The server is overloaded: too many large bodies are being sent. Try again in 1 s."
            raise ApiError(503, "server_overloaded", text, headers={"Retry-After": "1", "Connection": "close"})


def too_large(max_bytes: int) -> ApiError:
    message = f"The body must have at most {max_bytes} bytes. Send less."
    return ApiError(413, "request_too_large", message, headers={"Connection": "close"})
