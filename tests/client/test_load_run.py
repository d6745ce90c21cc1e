"""The load itself: whose clock counts, and connections that a server leaves."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from sarathi_jax.client.connection import HttpClient
from sarathi_jax.client.load import Load, LoadRun
from sarathi_jax.client.openai_api import Asking
from sarathi_jax.simulation.workloads import RequestShape


def test_a_busy_client_does_not_hide_its_queue(server: Any) -> None:
    """The second request is due while this client does nothing else for 0.3 s: it waits from its own time on."""
    run = LoadRun()

    async def send() -> None:
        client = HttpClient(server.url)
        shapes = [RequestShape(0.0, 1, 1), RequestShape(0.05, 1, 1)]
        load = Load(client, Asking(model="m", is_chat=False), shapes, [[1], [2]], 10.0)
        await load.send(run, on_end=lambda: time.sleep(0.3))
        await client.close()

    asyncio.run(send())
    second = max(run.ended, key=lambda each: each.arrival_s)
    assert second.arrival_s == 0.05
    assert second.sent_s >= 0.25
    assert (run.most_running, run.num_running) == (1, 0)


def test_a_connection_that_was_left_meanwhile_is_no_failure() -> None:
    """A server that ends a connection when a second request comes on it, without a word."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    num_connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async def ask_twice() -> list[bytes]:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        bodies = [bytes((await client.request("GET", "/", timeout_s=5.0)).body) for _ in range(2)]
        await client.close()
        listener.close()
        await listener.wait_closed()
        return bodies

    assert asyncio.run(ask_twice()) == [b"ok", b"ok"]
    assert num_connections == 2
