"""The parent's end of the template worker: starts it, asks it, and ends it when it takes too long."""

import json
import os
import selectors
import struct
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import IO, Any

WORKER_PATH = Path(__file__).with_name("template_worker.py")
START_DEADLINE_S = 60.0
# The worker bounds its own processor time; on a busy machine that much of it may take this many times as long.
WALL_FACTOR = 10.0


class TemplateProcessError(Exception):
    """The worker died, or did not answer in time. The next question goes to a new one."""


class TemplateProcess:
    """One worker process, started when first asked and again after it died. Not safe to share between threads."""

    def __init__(self, sources: dict[str, str], *, deadline_s: float, max_output_chars: int) -> None:
        self._settings = json.dumps(
            {"sources": sources, "deadline_s": deadline_s, "max_chars": max_output_chars}
        ).encode()
        self._wall_deadline_s = deadline_s * WALL_FACTOR
        # A character takes at most 12 bytes of JSON: two escapes of a surrogate pair.
        self._max_reply_bytes = 12 * max_output_chars + 4096
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[..., Any] | None = None

    @property
    def process_id(self) -> int | None:
        """The running worker's, or None."""
        return self._process.pid if self._process else None

    def ask(self, frame: bytes) -> dict[str, str]:
        """Send one request and wait for its answer. Raises: TemplateProcessError if none comes."""
        try:
            if self._process is None:
                self._start()
            return self._exchange(frame, self._wall_deadline_s)
        except TemplateProcessError:
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
            [sys.executable, "-P", str(WORKER_PATH)],
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
            raise TemplateProcessError("a worker that ended by itself") from error
        num_bytes = struct.unpack(">I", _read_exactly(self._process.stdout, 4, give_up_at_s))[0]
        if num_bytes > self._max_reply_bytes:
            raise TemplateProcessError(f"an answer of {num_bytes} bytes")
        reply: dict[str, str] = json.loads(_read_exactly(self._process.stdout, num_bytes, give_up_at_s))
        return reply


def _read_exactly(stream: IO[bytes], num_bytes: int, give_up_at_s: float) -> bytes:
    data = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(data) < num_bytes:
            if not selector.select(max(0.0, give_up_at_s - time.monotonic())):
                raise TemplateProcessError("no answer in time")
            chunk = os.read(stream.fileno(), min(num_bytes - len(data), 1 << 20))
            if not chunk:
                raise TemplateProcessError("a worker that was ended by its limits")
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
