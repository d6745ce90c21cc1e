"""A server in a process of its own, for benchmarks, and what the kernel says of its processes."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

START_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """pid: of the front. port: on 127.0.0.1."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine_pid(self) -> int:
        return children(self.pid)[0]

    def status(self, path: str = "/health") -> int:
        """Of a GET; 0: there is no answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5.0) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def info(self) -> dict[str, Any]:
        """What /server_info says."""
        with urllib.request.urlopen(f"{self.url}/server_info", timeout=5.0) as answer:
            return json.load(answer)


@contextmanager
def served(*flags: str) -> Iterator[ServerProcess]:
    """`sarathi-jax serve demo` with these flags, from when it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "sarathi_jax.cli.main", "serve", "demo", f"--port={port}", "--no-access-log"]
    with started([*command, *flags], port) as server:
        yield server


@contextmanager
def started(command: Sequence[str], port: int, ready_path: str = "/ready") -> Iterator[ServerProcess]:
    """Any server, from when it is ready. Raises: SystemExit if that takes too long."""
    process = subprocess.Popen(command)
    server = ServerProcess(process.pid, port)
    try:
        end_s = time.perf_counter() + START_LIMIT_S
        while server.status(ready_path) != 200:
            if process.poll() is not None or time.perf_counter() > end_s:
                raise SystemExit("the server has not started")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """One of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def flags_of(options: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def cpu_s(pid: int) -> float:
    """Processor seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def circumstances() -> dict[str, Any]:
    """What a report says of machine, versions and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "num_cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("jax", "fastapi", "uvicorn", "uvloop", "orjson", "msgspec")},
        "commit": commit,
    }
