"""The parts of the client: events from pieces of any size, replies from events, answers over sockets."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sarathi_jax.client.connection import Answer, ConnectionFailed, HttpClient
from sarathi_jax.client.openai_api import Asking, Reply, ask
from sarathi_jax.client.prompts import TextLength, fit_length
from sarathi_jax.client.server_events import EventReader
from sarathi_jax.errors import ConfigError

STREAM = b'data: {"a":1}\n\n: ping\n\nevent: x\r\ndata: two\r\ndata:lines\r\n\r\ndata: [DONE]\n\n'
EVENTS = [b'{"a":1}', b"two\nlines", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_come_out_of_pieces_of_any_size(size: int) -> None:
    reader = EventReader()
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS


def read(*events: str, status: int = 200, kind: str = "text/event-stream") -> Reply:
    reply = Reply()
    for event in events:
        reply.feed(f"data: {event}\n\n".encode())
    reply.end(Answer(status, {"content-type": kind}))
    return reply


def test_a_token_is_a_chunk_with_something_that_tokens_make() -> None:
    chat = '{"choices":[{"delta":%s}]}'
    reply = read(
        chat % '{"role":"assistant","content":""}',
        chat % '{"content":"a"}',
        chat % '{"reasoning_content":"b"}',
        chat % '{"tool_calls":[{"index":0}]}',
        '{"choices":[{"delta":{},"finish_reason":"stop"}]}',
        '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}',
    )
    assert (len(reply.token_times_s), reply.text, reply.failure) == (3, "a", None)
    assert (reply.num_prompt_tokens, reply.num_output_tokens) == (5, 9)


def test_a_count_tells_of_tokens_without_text() -> None:
    chunk = '{"choices":[{"text":"%s"}],"usage":{"prompt_tokens":5,"completion_tokens":%d}}'
    reply = read(chunk % ("", 1), chunk % ("é", 2), chunk % ("", 2), "[DONE]")
    assert (len(reply.token_times_s), reply.text, reply.num_output_tokens) == (2, "é", 2)


@pytest.mark.parametrize(
    ("events", "kind", "text"),
    [
        (['{"choices":[{"text":"a"}]}'], "cut", "without finish_reason and [DONE]"),
        (["{"], "bad_event", "an event must be a chunk in JSON, got '{'"),
        (['{"choices":[{"text":7}]}'], "bad_event", "Expected `str | null`, got `int`"),
        (['{"error":{"message":"it\\nbroke"}}', "[DONE]"], "error_event", "it broke"),
    ],
)
def test_what_is_no_answer_is_a_failure(events: list[str], kind: str, text: str) -> None:
    failure = read(*events).failure
    assert failure is not None
    assert failure.kind == kind
    assert text in failure.message


def test_two_measurements_give_the_length_of_a_text() -> None:
    length = fit_length((32, 71), (160, 327))
    assert (length.tokens_per_letter, length.overhead) == (2.0, 7.0)
    assert length.num_letters(101) == 47
    assert length.num_letters(3) == 1
    assert fit_length((32, 5), (160, 5)) == TextLength(1.0, 0.0)


def over_socket(answer: bytes, act: Callable[[HttpClient], Coroutine[Any, Any, Any]], *, closes: bool = True) -> Any:
    """What `act` gets from a server that says `answer` to whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if not closes:
            await reader.read()
        writer.close()
        await writer.wait_closed()

    async def run() -> Any:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/")
        try:
            return await act(client)
        finally:
            await client.close()
            listener.close()
            await listener.wait_closed()

    return asyncio.run(run())


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
EVENT = b'data: {"choices":[{"text":"hi","finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"content-length: %d\r\n\r\n" % len(EVENT) + EVENT,
        HEAD + b"\r\n" + EVENT,
        HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(EVENT), EVENT),
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"content-length: %d\r\n\r\n" % len(EVENT) + EVENT,
    ],
)
def test_bodies_end_by_length_by_chunks_or_with_the_connection(answer: bytes) -> None:
    reply = over_socket(answer, lambda client: ask(client, Asking(model="m", is_chat=False), "x", 3))
    assert (reply.text, reply.failure) == ("hi", None)


@pytest.mark.parametrize(
    ("answer", "closes", "kind"),
    [
        (b"", True, "disconnect"),
        (b"SSH-2.0-OpenSSH\r\n", True, "disconnect"),
        (HEAD + b"content-length: 900\r\n\r\n" + EVENT, True, "disconnect"),
        (HEAD + b"content-length: 900\r\n\r\n" + EVENT, False, "timeout"),
    ],
)
def test_answers_that_break_off_are_named(answer: bytes, closes: bool, kind: str) -> None:
    asking = Asking(model="m", is_chat=False)
    reply = over_socket(answer, lambda client: ask(client, asking, "x", 3, timeout_s=0.3), closes=closes)
    assert reply.failure is not None
    assert reply.failure.kind == kind


def test_what_a_reader_raises_reaches_the_caller() -> None:
    def refuse(text: str) -> None:
        raise KeyError(text)

    answer = HEAD + b"content-length: %d\r\n\r\n" % len(EVENT) + EVENT
    with pytest.raises(KeyError, match="hi"):
        over_socket(answer, lambda client: ask(client, Asking(model="m", is_chat=False), "x", 3, on_text=refuse))


def test_a_header_is_one_line() -> None:
    with pytest.raises(ConfigError, match="a header must be one line"):
        HttpClient("http://x", {"authorization": "Bearer a\r\nx: y"})


def test_nobody_there_is_a_failure_to_connect() -> None:
    async def get() -> None:
        await HttpClient("http://127.0.0.1:1").request("GET", "/")

    with pytest.raises(ConnectionFailed, match="no connection"):
        asyncio.run(get())
