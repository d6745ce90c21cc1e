"""Runs a server from its start to its end: socket, engine, front; SIGTERM lets requests end first."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn

from sarathi_jax.errors import ConfigError
from sarathi_jax.serve.app import make_app
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.engine_client import EngineClient
from sarathi_jax.serve.front import Front
from sarathi_jax.serve.gate import read_keys
from sarathi_jax.serve.http_protocol import limited_protocol
from sarathi_jax.serve.live_request import Lost

BACKLOG = 2048
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
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            return runner.run(ServerRun(config, keys, listener, started).run(engine_options))
        except BaseExceptionGroup as group:
            raise first_error(group) from None


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, of tasks that ended together."""
    error = group.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # not on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


class ServerRun:
    """One server's tasks."""

    def __init__(
        self,
        config: ServeConfig,
        keys: Mapping[bytes, str],
        listener: socket.socket,
        started: Callable[[Front, str], None],
    ) -> None:
        self._config = config
        self._keys = keys
        self._listener = listener
        self._started = started
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, engine_options: Mapping[str, Any]) -> int:
        config = self._config
        client = EngineClient(
            engine_options,
            progress=sys.stderr.isatty(),
            step_timeout_s=config.step_timeout_s,
            max_restarts=config.max_restarts,
        )
        front = Front(config, client, self._keys)
        server = Server(
            uvicorn.Config(
                make_app(front, self._keys),
                http=limited_protocol(config),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=int(config.keep_alive_s),
                timeout_graceful_shutdown=int(CLOSE_LIMIT_S),
            )
        )
        self._hear_signals()
        async with asyncio.TaskGroup() as tasks:
            engine = tasks.create_task(client.run())
            http = tasks.create_task(server.serve(sockets=[self._listener]))
            tasks.create_task(self._prepare(front))
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([stopping, engine], return_when=asyncio.FIRST_COMPLETED)
            front.is_draining = True
            if not engine.done():
                await self._drain(front)
            server.should_exit = True
            await http
            await client.close()
            front.close()
        return 0

    async def _prepare(self, front: Front) -> None:
        await front.prepare()
        host, port = self._listener.getsockname()[:2]
        self._started(front, f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def _hear_signals(self) -> None:
        """The first one lets requests end, the second one does not."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)

    def _stop(self) -> None:
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
