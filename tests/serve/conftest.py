"""Servers for tests: the real front, on a real socket, in a thread, over an engine process that has no model (`fake_engine`), or over the real one."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sarathi_jax.errors import SarathiError
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.engine_client import ENGINE_COMMAND
from sarathi_jax.serve.front import Front
from sarathi_jax.serve.gate import read_keys
from sarathi_jax.serve.server import ServerRun, listen, loop_factory

START_LIMIT_S = 300.0  # the real engine compiles when it first starts, perhaps beside other tests
FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
REAL_ENGINE = {"model": "demo", "max_num_seqs": 8, "token_budget": 128}


class RunningServer:
    """A server and how to reach it. http: a client of it. error: what ended it, if anything did."""

    def __init__(self, config: ServeConfig, engine_options: dict[str, Any], command: tuple[str, ...]) -> None:
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self.front: Front | None = None
        self.http = httpx2.Client(timeout=30.0)
        listener = listen(config)
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, args=(config, listener, engine_options, command), daemon=True)
        self._thread.start()

    def _run(
        self, config: ServeConfig, listener: Any, engine_options: dict[str, Any], command: tuple[str, ...]
    ) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            self._loop = runner.get_loop()
            try:
                self.run = ServerRun(config, read_keys(config, {}), listener, self._started, command)
                runner.run(self.run.run(engine_options))
            except SarathiError as error:
                self.error = error
            finally:
                self.ready.set()

    def _started(self, front: Front, _: str) -> None:
        self.front = front
        self.ready.set()

    def wait(self) -> "RunningServer":
        assert self.ready.wait(START_LIMIT_S), "the server has not started"
        if self.error is not None:
            raise self.error
        return self

    @property
    def engine_pid(self) -> int:
        assert self.front is not None and self.front.client.process_id is not None
        return self.front.client.process_id

    def stop(self) -> None:
        """Once: let requests end."""
        self._loop.call_soon_threadsafe(self.run.stop)

    def run_in_loop(self, call: Callable[[], Any]) -> None:
        """Have something run by the server's event loop."""
        self._loop.call_soon_threadsafe(call)

    def join(self) -> None:
        self._thread.join(START_LIMIT_S)
        assert not self._thread.is_alive(), "the server has not ended"

    def close(self) -> None:
        self.http.close()
        if self._thread.is_alive():
            self.stop()
            self.stop()
            self.join()

    # ---- asking

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        return self.http.post(self.url + path, json=body, headers=headers)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.http.get(self.url + path, headers=headers)

    def complete(self, prompt: Any = "12+30=", **fields: Any) -> dict[str, Any]:
        """A completion that has to succeed."""
        return self._ok(self.post("/v1/completions", {"model": "demo", "prompt": prompt, **fields}))

    def chat(self, content: Any = "What is 12+30?", **fields: Any) -> dict[str, Any]:
        messages = fields.pop("messages", [{"role": "user", "content": content}])
        return self._ok(self.post("/v1/chat/completions", {"model": "demo", "messages": messages, **fields}))

    def _ok(self, response: httpx2.Response) -> dict[str, Any]:
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """All events of a stream, which has to end with [DONE]."""
        with self.http.stream("POST", self.url + path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]", lines[-1]
        return [json.loads(line[6:]) for line in lines[:-1]]

    def num_free_pages(self) -> int:
        """KV pages that nobody holds, as the engine last said."""
        pages = self.get("/server_info").json()["kv_pages"]
        return pages["free"] + pages["cached"]


type Serving = Callable[..., RunningServer]


def fake_command(**options: Any) -> tuple[str, ...]:
    return (sys.executable, str(FAKE_ENGINE), json.dumps(options))


@contextmanager
def running(config: ServeConfig, engine_options: dict[str, Any], command: tuple[str, ...]) -> Iterator[RunningServer]:
    server = RunningServer(config, engine_options, command)
    try:
        yield server
    finally:
        server.close()


def quick_config(**fields: Any) -> ServeConfig:
    # The log belongs to the process: what one server says of itself is seen by tests of others.
    return ServeConfig(**{"port": 0, "access_log": False, "log_stats_s": 0, **fields})


@contextmanager
def starter() -> Iterator[Serving]:
    with ExitStack() as stack:

        def start(*, engine: dict[str, Any] | None = None, waits: bool = True, **fields: Any) -> RunningServer:
            server = stack.enter_context(running(quick_config(**fields), {}, fake_command(**(engine or {}))))
            return server.wait() if waits else server

        yield start


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Starts servers over fake engines: serving(engine={...}, field=...); `waits=False` does not wait until they are ready."""
    with starter() as start:
        yield start


@pytest.fixture(scope="module")
def sharing() -> Iterator[Serving]:
    """The same, for servers that a module's tests share."""
    with starter() as start:
        yield start


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server over a fake engine that a module's tests share."""
    with running(quick_config(), {}, fake_command()) as running_server:
        yield running_server.wait()


@pytest.fixture(scope="session")
def real_server() -> Iterator[RunningServer]:
    """A server over the demo model and the real engine, which all tests of a process share."""
    os.environ.pop("XLA_FLAGS", None)
    with running(quick_config(), dict(REAL_ENGINE), ENGINE_COMMAND) as running_server:
        yield running_server.wait()
