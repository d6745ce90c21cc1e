"""Runs a server from its start to its end: socket, engine, front; SIGTERM lets requests end first."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import uvicorn

from sarathi_jax.errors import ConfigError
from sarathi_jax.serve.app import make_app
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.engine_client import ENGINE_COMMAND, EngineClient
from sarathi_jax.serve.event_loop import measure_lag
from sarathi_jax.serve.front import Front
from sarathi_jax.serve.garbage import freeze_garbage
from sarathi_jax.serve.gate import read_keys
from sarathi_jax.serve.http_protocol import limited_protocol
from sarathi_jax.serve.live_request import Lost
from sarathi_jax.serve.log import LineHandler, logging_to
from sarathi_jax.serve.stats_log import log_stats

BACKLOG = 2048
SEND_BUFFER_BYTES = 128 * 2**10
DRAIN_POLL_S = 0.05
CLOSE_LIMIT_S = 2.0
SHUT_DOWN = Lost("server_shutting_down", "The server shut down before the request had ended.")


class Server(uvicorn.Server):
    """uvicorn's, that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def listen(config: ServeConfig) -> socket.socket:
    """The socket that clients connect to. Raises: ConfigError if it can't be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # What the kernel takes for clients that don't read: it would grow to megabytes each.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        listener.bind((config.host, config.port))
    except (OSError, UnicodeError) as error:
        listener.close()
        raise ConfigError(
            f"host and port must be free to listen on, got {config.host}:{config.port} ({error}): choose another port, or end what holds it."
        ) from error
    listener.listen(BACKLOG)
    return listener


def serve(
    config: ServeConfig, engine_options: Mapping[str, Any], started: Callable[[Front, str], None] = lambda *_: None
) -> int:
    """Serve until a signal comes. Returns: the exit code.

    Args:
      engine_options: EngineConfig's fields that are not at their defaults.
      started: called once, when requests are served, with the server's URL.
    Raises: ConfigError, ModelError, EngineError if the server or the engine can't be started, or the engine died too often.
    """
    keys = read_keys(config, os.environ)
    listener = listen(config)

    def ready(front: Front, url: str) -> None:
        freeze_garbage()
        started(front, url)

    with (
        logging_to(config.log_format, config.log_level) as log,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        return runner.run(ServerRun(config, keys, listener, ready, log=log).run(engine_options))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # not on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _first_end(stopping: asyncio.Task[Any], engine: asyncio.Task[Any], preparing: asyncio.Task[Any]) -> None:
    """Wait for what ends a server. Raises: what went wrong in preparing it; what ended the engine is the engine task's."""
    await asyncio.wait([stopping, engine, preparing], return_when=asyncio.FIRST_COMPLETED)
    if preparing.done():
        preparing.result()
        await asyncio.wait([stopping, engine], return_when=asyncio.FIRST_COMPLETED)


class ServerRun:
    """One server's tasks."""

    def __init__(
        self,
        config: ServeConfig,
        keys: Mapping[bytes, str],
        listener: socket.socket,
        started: Callable[[Front, str], None],
        engine_command: Sequence[str] = ENGINE_COMMAND,
        log: LineHandler | None = None,
    ) -> None:
        self._log = log
        self._engine_command = engine_command
        self._config = config
        self._keys = keys
        self._listener = listener
        self._started = started
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, engine_options: Mapping[str, Any]) -> int:
        """Returns: the exit code. Raises: what ended the engine."""
        with self._hearing_signals():
            return await self._run(engine_options)

    async def _run(self, engine_options: Mapping[str, Any]) -> int:
        config = self._config
        client = EngineClient(
            engine_options,
            progress=sys.stderr.isatty(),
            step_timeout_s=config.step_timeout_s,
            max_restarts=config.max_restarts,
            log_format=config.log_format,
            log_level=config.log_level,
            command=self._engine_command,
        )
        front = Front(config, client, self._keys)
        if self._log is not None:
            front.metrics.watch_log(self._log)
        server = Server(
            uvicorn.Config(
                make_app(front, self._keys),
                http=limited_protocol(config),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # a client's word on who it is
                timeout_keep_alive=int(config.keep_alive_s),
                timeout_graceful_shutdown=int(CLOSE_LIMIT_S),
            )
        )
        engine = asyncio.create_task(client.run())
        http = asyncio.create_task(server.serve(sockets=[self._listener]))
        preparing = asyncio.create_task(self._prepare(front))
        stopping = asyncio.create_task(self._stopping.wait())
        watching = [asyncio.create_task(measure_lag(front.metrics.lag))]
        if config.log_stats_s:
            watching.append(asyncio.create_task(log_stats(front, config.log_stats_s)))
        try:
            await _first_end(stopping, engine, preparing)
            front.is_draining = True
            if not engine.done():
                await self._drain(front)
        finally:
            server.should_exit = True
            await http
            preparing.cancel()
            stopping.cancel()
            for task in watching:
                task.cancel()
            await client.close()
            front.close()
        await engine
        return 0

    async def _prepare(self, front: Front) -> None:
        await front.prepare()
        host, port = self._listener.getsockname()[:2]
        self._started(front, f"http://{f'[{host}]' if ':' in host else host}:{port}")

    @contextlib.contextmanager
    def _hearing_signals(self) -> Iterator[None]:
        """The first one lets requests end, the second one does not.

        Python's own handlers: a loop's are called when it has read a byte from a pipe, and not at all if that is lost.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def hear(*_: object) -> None:
            loop.call_soon_threadsafe(self.stop)

        before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Let requests end, and then the server; called again, at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def _drain(self, front: Front) -> None:
        """Until nothing is left to do, or time is up."""
        end_s = time.perf_counter() + self._config.drain_timeout_s
        while front.admission.num_open and time.perf_counter() < end_s and not self._hurry.is_set():
            await asyncio.sleep(DRAIN_POLL_S)
        for live in front.client.live:
            live.lose(SHUT_DOWN)
        await asyncio.sleep(0)
