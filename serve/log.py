"""The log: a line of text or of JSON for each record, to standard error, by a thread of its own. Nobody waits for whoever reads it: what it has no room for is counted."""

import contextlib
import logging
import os
import queue
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Literal

import orjson

type LogFormat = Literal["text", "json"]
type LogLevel = Literal["debug", "info", "warning", "error"]

STDERR = 2
MAX_WAITING_LINES = 4096
MAX_MESSAGE_CHARS = 4000
CLOSE_LIMIT_S = 1.0
# Whatever could move a terminal's cursor, change its colours, begin a line, or turn the direction of text.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """On one line, without what a terminal obeys."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text[:MAX_MESSAGE_CHARS])


class TextLines(logging.Formatter):
    """time level logger: message. A traceback comes below it, indented; a record with `is_plain` is its message alone."""

    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, "is_plain", False):
            return record.getMessage()
        when = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        name = record.name.removeprefix("sarathi_jax.")
        line = f"{when} {record.levelname:<7} {name}: {escaped(record.getMessage())}"
        if record.exc_info:
            below = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {escaped(each)}" for each in below)
        return line


class JsonLines(logging.Formatter):
    """An object a line; what a record has in `fields` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = fields.get("message", record.getMessage())[:MAX_MESSAGE_CHARS]
        value = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **fields,
            "message": message.encode(errors="backslashreplace").decode(),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info).encode(errors="backslashreplace").decode()
        return orjson.dumps(value, default=str).decode()


class LineHandler(QueueHandler):
    """Hands lines on, never waiting. num_dropped: those that there was no room for."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self._lines: queue.Queue[Any] = queue.Queue(MAX_WAITING_LINES)
        super().__init__(self._lines)
        self.setFormatter(formatter)
        self.num_dropped = 0

    @property
    def num_waiting(self) -> int:
        """Lines that are not written yet."""
        return self._lines.qsize()

    def prepare(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def enqueue(self, record: Any) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self.num_dropped += 1


class LineWriter(QueueListener):
    """Writes to a file descriptor, past Python's buffers: whose reader stands still must not hold up the end of the process."""

    def __init__(self, handler: LineHandler, descriptor: int) -> None:
        super().__init__(handler.queue)
        self._handler = handler
        self._descriptor = descriptor
        self._num_told = 0

    def handle(self, record: Any) -> None:
        self._write(record)
        num_dropped = self._handler.num_dropped
        if num_dropped > self._num_told:
            text = f"{num_dropped - self._num_told} lines were left out here: the log was not read in time"
            self._num_told = num_dropped
            told = logging.LogRecord(__name__, logging.WARNING, "", 0, text, (), None)
            self._write(self._handler.prepare(told))

    def stop(self) -> None:
        """What waits is written, if somebody reads it soon."""
        thread = self._thread
        if thread is not None:
            with contextlib.suppress(queue.Full):
                self.enqueue_sentinel()
            thread.join(CLOSE_LIMIT_S)
            self._thread = None

    def _write(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            while line:
                line = line[os.write(self._descriptor, line) :]


@contextlib.contextmanager
def logging_to(log_format: LogFormat, level: LogLevel, descriptor: int = STDERR) -> Iterator[LineHandler]:
    """All of the process's loggers write there, ours from `level` on, others only what they warn of."""
    handler = LineHandler(JsonLines() if log_format == "json" else TextLines())
    writer = LineWriter(handler, descriptor)
    root, own = logging.getLogger(), logging.getLogger("sarathi_jax")
    before = root.level, own.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    own.setLevel(level.upper())
    writer.start()
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        own.setLevel(before[1])
        writer.stop()
        handler.close()
