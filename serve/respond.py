"""From an answer to a response: whole, unless the client leaves before; or as a stream. Either way the answer is closed in the end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Request
from starlette.responses import Response

from sarathi_jax.serve.answer import Answer
from sarathi_jax.serve.errors import CLIENT_CLOSED
from sarathi_jax.serve.front import Front
from sarathi_jax.serve.schemas import SamplingBody
from sarathi_jax.serve.sse import EventStream, until_disconnect


async def json_answer(request: Request, answer: Answer, write: Callable[[], Awaitable[bytes]]) -> Response:
    """The whole answer. Raises: ApiError."""
    writing = asyncio.ensure_future(write())
    leaving = asyncio.create_task(until_disconnect(request.receive))
    try:
        await asyncio.wait([writing, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            return Response(status_code=CLIENT_CLOSED)
        return Response(writing.result(), media_type="application/json")
    finally:
        leaving.cancel()
        writing.cancel()
        answer.close()


def stream_answer(front: Front, answer: Answer, chunks: AsyncIterator[bytes]) -> Response:
    """The answer as it comes."""
    return EventStream(chunks, slow_reader_s=front.config.slow_reader_timeout_s, close=answer.close)


def needs_usage(body: SamplingBody, *, is_continuous: bool = False) -> bool:
    """Whether a stream is to say in the end what was used; or, if `is_continuous`, all along."""
    options = body.stream_options
    if options is None:
        return False
    return bool(options.continuous_usage_stats if is_continuous else options.include_usage)
