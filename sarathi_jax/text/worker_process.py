"""The parent's end of a worker process, in which a stranger's program runs (a chat template, a grammar): starts it, asks it, and ends it when it takes too long."""

import json
import os
import selectors
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

MAIN_PATH = Path(__file__).with_name("worker_main.py")
START_DEADLINE_S = 60.0
# The worker bounds its own processor time; on a busy machine that much of it may take this many times as long.
WALL_FACTOR = 10.0


class WorkerProcessError(Exception):
    """The worker died, or did not answer in time. The next question goes to a new one."""


class WorkerProcess:
    """One worker process, started when first asked and again after it died. Not safe to share between threads.

    Args:
      task: the file with what it does; see `worker_main.py`.
      settings: for the task; plain JSON values.
      deadline_s: processor time that one answer may take.
      growth_bytes: address space that one answer may take.
      max_reply_bytes: of one answer.
    """

    def __init__(
        self, task: Path, settings: Mapping[str, Any], *, deadline_s: float, growth_bytes: int, max_reply_bytes: int
    ) -> None:
        self._task = task
        self._settings = json.dumps({**settings, "deadline_s": deadline_s, "growth_bytes": growth_bytes}).encode()
        self._wall_deadline_s = deadline_s * WALL_FACTOR
        self._max_reply_bytes = max_reply_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[..., Any] | None = None

    @property
    def process_id(self) -> int | None:
        """The running worker's, or None."""
        return self._process.pid if self._process else None

    def ask(self, frame: bytes) -> dict[str, str]:
        """Send one request and wait for its answer. Raises: WorkerProcessError if none comes."""
        try:
            if self._process is not None and self._process.poll() is not None:
                self.close()  # it ended between two questions, which is no answer's fault
            if self._process is None:
                self._start()
            return self._exchange(frame, self._wall_deadline_s)
        except WorkerProcessError:
            self.close()
            raise

    def close(self) -> None:
        """End the worker, if there is one."""
        if self._stop is not None:
            self._stop()
        self._process = self._stop = None

    def _start(self) -> None:
        # -P: the worker's own folder is not a place to import from. A session of its own: Ctrl-C in a terminal is not
        # for it. Nothing of the engine's own is its business, least of all the key of a group of processes.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(MAIN_PATH), str(self._task)],
            env={name: value for name, value in os.environ.items() if not name.startswith("SARATHI_JAX_")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stop = weakref.finalize(self, _end_process, self._process)
        self._exchange(self._settings, START_DEADLINE_S)

    def _exchange(self, frame: bytes, timeout_s: float) -> dict[str, str]:
        assert self._process is not None and self._process.stdin and self._process.stdout, (
            "ask() starts the worker first"
        )
        give_up_at_s = time.monotonic() + timeout_s
        try:
            self._process.stdin.write(struct.pack(">I", len(frame)) + frame)
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerProcessError("a worker that ended by itself") from error
        num_bytes = struct.unpack(">I", _read_exactly(self._process.stdout, 4, give_up_at_s))[0]
        if num_bytes > self._max_reply_bytes:
            raise WorkerProcessError(f"an answer of {num_bytes} bytes")
        reply: dict[str, str] = json.loads(_read_exactly(self._process.stdout, num_bytes, give_up_at_s))
        return reply


def _read_exactly(stream: IO[bytes], num_bytes: int, give_up_at_s: float) -> bytes:
    data = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(data) < num_bytes:
            if not selector.select(max(0.0, give_up_at_s - time.monotonic())):
                raise WorkerProcessError("no answer in time")
            chunk = os.read(stream.fileno(), min(num_bytes - len(data), 1 << 20))
            if not chunk:
                raise WorkerProcessError("a worker that was ended by its limits")
            data += chunk
    return bytes(data)


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:  # what was still to be written has no reader left
                continue
