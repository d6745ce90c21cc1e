"""A process of its own for what strangers send: a hostile template or grammar costs it, and not the engine.

Run as a script by `worker_process.py`, with the file of a task as its argument; neither imports anything of this package. The task's `start(settings)` gives the
function that answers a request. Frames on stdin and stdout are a 4-byte big-endian length and that many bytes of JSON. The first frame in holds the settings, the
first one out says that the worker is ready; each further frame in is one request.

Two bounds are the system's: processor time per request, which also ends a worker whose parent is gone, and the address space that a request may take.
"""

import contextlib
import importlib.util
import json
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

type Answer = Callable[[dict[str, Any]], dict[str, str]]


def load_start(path: str) -> Callable[[dict[str, Any]], Answer]:
    """A task's `start`."""
    spec = importlib.util.spec_from_file_location("worker_task", path)
    assert spec is not None and spec.loader is not None, "a task is a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.start


def limit_growth(num_bytes: int) -> None:
    """Let this process take so much address space beyond what it has; where a system knows no such limit, the one on time stands anyway."""
    with contextlib.suppress(ValueError, OSError):
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = num_pages * resource.getpagesize() + num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def read_frames(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    while len(header := stream.read(4)) == 4:
        yield json.loads(stream.read(struct.unpack(">I", header)[0]))


def write_frame(stream: BinaryIO, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def main() -> None:
    frames = read_frames(sys.stdin.buffer)
    settings = next(frames)
    answer = load_start(sys.argv[1])(settings)
    write_frame(sys.stdout.buffer, {"text": "ready"})
    for request in frames:
        limit_growth(settings["growth_bytes"])
        signal.setitimer(signal.ITIMER_PROF, settings["deadline_s"])  # SIGPROF, unhandled, ends the process
        reply = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(sys.stdout.buffer, reply)


if __name__ == "__main__":
    main()
