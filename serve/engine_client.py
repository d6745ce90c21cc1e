"""The front's side of the engine process: starts it, tells it of requests, sees it die or hang, starts it again, and lets every request go on where it was."""

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from sarathi_jax.errors import ConfigError, EngineError
from sarathi_jax.serve.link import FrontLink, LinkError
from sarathi_jax.serve.live_request import LiveRequest, Lost, RequestSpec
from sarathi_jax.serve.messages import (
    Abort,
    Ended,
    EndSample,
    EngineFacts,
    Explained,
    Found,
    Ready,
    Refused,
    Start,
    Steps,
    Stop,
    ToFront,
    Tokens,
    Watch,
)

logger = logging.getLogger(__name__)

type EngineState = Literal["starting", "ready", "restarting", "dead"]

WATCH_EVERY_S = 0.25
STOP_LIMIT_S = 5.0
END_LIMIT_S = 0.5
STACKS_WAIT_S = 0.5
CRASH_WINDOW_S = 60.0
MAX_DOUBLINGS = 6  # of the wait before an engine is started again: half a minute
MAX_DEATHS = 3  # of engines under one request: it may be what they die of, and others are to be served
USER_ERROR_CODE = 2
ENGINE_COMMAND = (sys.executable, "-m", "sarathi_jax.serve.engine_process")


class Arrival(NamedTuple):
    """What came for a request. gap_s: since the sample's token before; None: there was none. is_first: whether it is the request's first one."""

    live: LiveRequest
    num_tokens: int
    gap_s: float | None
    is_first: bool


class Observer(Protocol):
    """Is told what comes of requests, for metrics."""

    def tokens(self, arrivals: Sequence[Arrival]) -> None: ...

    def ended(self, live: LiveRequest) -> None: ...

    def steps(self, message: Steps) -> None: ...


class EngineClient:
    """The engine, however many processes it takes one after the other. All calls on one event loop.

    Args:
      options: EngineConfig's fields that are not at their defaults.
      progress: whether the process shows bars.
      step_timeout_s: silence, with work to do, after which a step hangs and the process is killed.
      max_restarts: in a minute; one more, and `run` raises.
      log_format, log_level: of the process's log, as ServeConfig's.
      command: what the process runs, followed by the socket's path.

    facts: once it was ready. steps: the latest report. found: whoever wants to know the model's folder, once.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        progress: bool = False,
        step_timeout_s: float = 30.0,
        max_restarts: int = 5,
        log_format: str = "text",
        log_level: str = "info",
        command: Sequence[str] = ENGINE_COMMAND,
    ) -> None:
        self._command = tuple(command)
        self._start = Start(dict(options), progress, log_format, log_level)
        self._step_timeout_s = step_timeout_s
        self._max_restarts = max_restarts
        self.state: EngineState = "starting"
        self.facts: EngineFacts | None = None
        self.folder: asyncio.Future[Path | None] = asyncio.get_running_loop().create_future()
        self.ready = asyncio.Event()
        self.steps: Steps | None = None
        self.num_restarts = 0
        self.observers: list[Observer] = []
        self.on_steps: list[Callable[[Steps], None]] = []
        self.on_state: list[Callable[[EngineState], None]] = []
        self._numbers = itertools.count()
        self._live: dict[int, LiveRequest] = {}
        self._link: FrontLink | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._deaths_s: deque[float] = deque()
        self._num_vain_starts = 0  # in a row: of engines that ended before they had made a token
        self._heard_s = time.perf_counter()
        self._num_watchers = 0
        self._end_message = ""
        self._closing = asyncio.Event()

    # ---- requests

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @property
    def live(self) -> list[LiveRequest]:
        return list(self._live.values())

    def submit(self, spec: RequestSpec) -> LiveRequest:
        """Hand a request to the engine. Whoever calls this takes its events, and calls `leave` in the end."""
        live = LiveRequest(next(self._numbers), spec)
        if not self.seconds_silent:
            self._heard_s = time.perf_counter()  # an idle engine is silent
        self._live[live.number] = live
        if self._link is not None and self.state == "ready":
            for add in live.adds():
                self._link.send(add)
        return live

    def leave(self, live: LiveRequest) -> None:
        """Nobody waits for a request any more: it ends, if it has not."""
        if self._live.pop(live.number, None) is None:
            return
        for observer in self.observers:
            observer.ended(live)
        if not live.has_ended and self._link is not None:
            self._link.send(Abort(live.number))

    def end_sample(self, live: LiveRequest, sample: int) -> None:
        """A sample's text has come to a stop string."""
        live.end_sample(sample)
        if self._link is not None and live.number in self._live:
            self._link.send(EndSample(live.number, sample))

    def watch(self, *, is_on: bool) -> None:
        """One watcher more or fewer of each step's rows."""
        self._num_watchers += 1 if is_on else -1
        if self._link is not None and self.state == "ready" and self._num_watchers == int(is_on):
            self._link.send(Watch(is_on))

    # ---- the process

    @property
    def seconds_silent(self) -> float:
        """How long the engine has had work and said nothing; 0 without work."""
        is_busy = any(not live.is_over for live in self._live.values())
        return time.perf_counter() - self._heard_s if is_busy else 0.0

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Keep an engine running until `close`. Raises: ConfigError, EngineError if it can't be started, or died too often."""
        folder = Path(tempfile.mkdtemp(prefix="sarathi-jax-"))  # only this user may enter it
        try:
            while not self._closing.is_set():
                await self._run_process(folder / f"engine-{self.num_restarts}.sock")
                if not self._closing.is_set():
                    await self._prepare_restart()
        finally:
            self._set_state("dead")
            for live in self.live:
                live.lose(Lost("engine_unavailable", "The engine has ended."))
            shutil.rmtree(folder, ignore_errors=True)

    async def close(self) -> None:
        """End the process, and with it `run`."""
        self._closing.set()
        process, link = self._process, self._link
        if link is not None:
            link.send(Stop())
        if process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_LIMIT_S if self.state == "ready" else 0.0)
            kill(process)

    async def _run_process(self, path: Path) -> None:
        """One process, from its start to its end."""
        connected: asyncio.Future[FrontLink] = asyncio.get_running_loop().create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()
            else:
                connected.set_result(FrontLink(reader, writer))

        server = await asyncio.start_unix_server(accept, path)
        path.chmod(0o600)
        # A session of its own: Ctrl-C in a terminal is for the front. What it prints is for people.
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            str(path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
        watcher = asyncio.create_task(self._watch_over(process))
        try:
            waited = asyncio.create_task(process.wait())
            await asyncio.wait([connected, waited], return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                await self._talk(connected.result())
            waited.cancel()
        finally:
            watcher.cancel()
            server.close()
            self._link = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_LIMIT_S)  # it may end by itself, with a code
            kill(process)
            await process.wait()
            path.unlink(missing_ok=True)

    async def _talk(self, link: FrontLink) -> None:
        self._link = link
        link.send(self._start)
        try:
            while True:
                message = await link.receive()
                self._heard_s = time.perf_counter()
                self._take(message)
        except LinkError:
            pass
        finally:
            link.close()

    def _take(self, message: ToFront) -> None:
        match message:
            case Tokens():
                self._take_tokens(message)
            case Steps():
                self.steps = message
                for hear in (*self.on_steps, *(observer.steps for observer in self.observers)):
                    hear(message)
            case Refused() | Explained():
                self._take_word(message)
            case Found():
                if not self.folder.done():
                    self.folder.set_result(None if message.folder is None else Path(message.folder))
            case Ready():
                self._go_on(message.facts)
            case Ended():
                self._end_message = message.message

    def _take_word(self, message: Refused | Explained) -> None:
        live = self._live.get(message.number)
        if live is None:
            return
        if isinstance(message, Explained):
            live.explain(message.late)
        else:
            live.lose(Lost("invalid_value", message.message, message.param))

    def _take_tokens(self, message: Tokens) -> None:
        self._num_vain_starts = 0
        arrivals: list[Arrival] = []
        for event in message.events:
            if (live := self._live.get(event.number)) is not None:
                is_first = live.first_token_s is None and bool(event.token_ids)
                gap_s = live.push(event, message.end_s)
                arrivals.append(Arrival(live, len(event.token_ids), gap_s, is_first))
        for observer in self.observers:
            observer.tokens(arrivals)

    def _go_on(self, facts: EngineFacts) -> None:
        """An engine is ready: it gets all requests that the one before it had."""
        assert self._link is not None, "an engine that speaks is connected"
        self.facts = facts
        if self._num_watchers:
            self._link.send(Watch(True))
        for live in [live for live in self.live if not live.is_over]:
            live.num_restarts += 1
            if live.num_restarts > MAX_DEATHS:
                live.lose(Lost("internal_error", ""))
                continue
            for add in live.adds():
                self._link.send(add)
        self._set_state("ready")
        self.ready.set()

    def _set_state(self, state: EngineState) -> None:
        self.state = state
        for hear in self.on_state:
            hear(state)

    async def _prepare_restart(self) -> None:
        """The process has ended by itself. Raises: ConfigError, EngineError if there is no use in another."""
        assert self._process is not None, "it was started"
        code, message = self._process.returncode, self._end_message or "the engine process ended without a word"
        if self.facts is None:
            raise ConfigError(message) if code == USER_ERROR_CODE else EngineError(message)
        self.ready.clear()
        self._set_state("restarting")
        self.num_restarts += 1
        self._end_message = ""
        logger.error(
            "the engine process ended (%s): %s; starting it again, with %d requests", code, message, self.num_live
        )
        now_s = time.perf_counter()
        self._deaths_s.append(now_s)
        while now_s - self._deaths_s[0] > CRASH_WINDOW_S:
            self._deaths_s.popleft()
        if len(self._deaths_s) > self._max_restarts:
            raise EngineError(f"the engine died {len(self._deaths_s)} times within {CRASH_WINDOW_S:.0f} s: {message}")
        # At once if the engine had served, then more and more slowly; a server that ends does not wait.
        wait_s = 0.5 * (2 ** min(self._num_vain_starts, MAX_DOUBLINGS) - 1)
        self._num_vain_starts += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), wait_s)

    async def _watch_over(self, process: asyncio.subprocess.Process) -> None:
        """Kill a process whose step hangs, after it has said where."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if self.state == "ready" and self.seconds_silent > self._step_timeout_s:
                logger.error("no step ended for %.0f s: the engine process is killed; its stacks:", self.seconds_silent)
                self._set_state("restarting")
                process.send_signal(signal.SIGUSR1)
                await asyncio.sleep(STACKS_WAIT_S)
                self._end_message = "a step did not end"
                kill(process)
                return


def kill(process: asyncio.subprocess.Process) -> None:
    """End a process and whatever it has started, now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
