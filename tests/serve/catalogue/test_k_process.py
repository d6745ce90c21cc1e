"""Group K of the catalogue: the server's process and its machine.

B-K05 is in tests/execution, B-K06 to B-K08, which need several processes of a group, in tests/group. What the front's socket to its engine takes: B-K07 here.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.server import listen

COMPLETIONS = "/v1/completions"
GOOD = {"model": "demo", "prompt": "12+30=", "max_tokens": 40, "ignore_eos": True}
FAKE_ENGINE = Path(__file__).parent.parent / "fake_engine.py"
# A server in a process of its own, over the fake engine; prints its port.
PROGRAM = """
import asyncio, json, resource, signal, sys
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.server import ServerRun, listen, loop_factory

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
config = ServeConfig(port=0, access_log=False)
listener = listen(config)
before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
command = (sys.executable, sys.argv[2], sys.argv[3])
run = ServerRun(config, {}, listener, lambda *_: print(listener.getsockname()[1], flush=True), command)
with asyncio.Runner(loop_factory=loop_factory()) as runner:
    code = runner.run(run.run({}))
# Whoever started it hears of signals again as before.
assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
sys.exit(code)
"""


class Process:
    """A server in a process of its own. num_files: that it may have open."""

    def __init__(self, num_files: int, **engine: Any) -> None:
        words = [sys.executable, "-c", PROGRAM, str(num_files), str(FAKE_ENGINE), json.dumps(engine)]
        self.popen = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait(self) -> str:
        assert self.popen.stdout is not None
        self.port = int(self.popen.stdout.readline())
        return f"http://127.0.0.1:{self.port}"

    def end(self) -> tuple[int, str]:
        """Exit code and what it said."""
        self.popen.send_signal(signal.SIGTERM)
        _, errors = self.popen.communicate(timeout=30)
        return self.popen.returncode, errors


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_server_with_nothing_to_do_ends_at_once(is_ready: bool) -> None:
    """B-K01: also while the engine starts."""
    process = Process(256, start_s=0.0 if is_ready else 30.0)
    if is_ready:
        process.wait()
    else:
        time.sleep(2.5)
    start_s = time.perf_counter()
    code, errors = process.end()
    assert code == 0, errors
    assert time.perf_counter() - start_s < 5.0  # 1 s on a machine of its own
    assert "Traceback" not in errors


def test_a_port_that_is_taken() -> None:
    """B-K02"""
    first = listen(ServeConfig(port=0))
    port = first.getsockname()[1]
    with pytest.raises(ConfigError, match=f"got 127.0.0.1:{port} .*choose another port") as caught:
        listen(ServeConfig(port=port))
    assert "\n" not in str(caught.value)
    first.close()


def test_an_address_that_is_none() -> None:
    """B-K02"""
    for host in ("no.such.host.invalid", "300.1.1.1", "x" * 300, "8.8.8.8"):
        with pytest.raises(ConfigError, match="host and port must be free to listen on"):
            listen(ServeConfig(host=host, port=0))


def test_no_more_files_can_be_opened() -> None:
    """B-K03: those who are in are served on; when there is room again, so are the others."""
    process = Process(64, step_s=0.02)
    url = process.wait()
    connections: list[socket.socket] = []
    try:
        with httpx2.Client(timeout=30.0) as http:
            expected = http.post(url + COMPLETIONS, json=GOOD).json()["choices"][0]["text"]
            found: list[str] = []

            def stream() -> None:
                with http.stream("POST", url + COMPLETIONS, json={**GOOD, "stream": True}) as answer:
                    events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
                found.append("".join(event["choices"][0]["text"] for event in events))

            streaming = threading.Thread(target=stream)
            streaming.start()
            time.sleep(0.1)
            connections += [socket.create_connection(("127.0.0.1", process.port)) for _ in range(100)]
            streaming.join(30)
            assert found == [expected]
        for connection in connections:
            connection.close()
        with httpx2.Client(timeout=30.0) as http:
            assert http.post(url + COMPLETIONS, json=GOOD).json()["choices"][0]["text"] == expected
    finally:
        code, errors = process.end()
    assert code == 0
    assert errors.count("Traceback") <= 1
    assert len(errors) < 20_000


def test_the_time_of_day_may_jump(server: Any, well: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-K04: an hour back, and forth, in the middle of a request."""
    now_s = time.time()
    found: list[Any] = []
    body = {**GOOD, "max_tokens": 400, "deadline_ms": 20_000}
    asking = threading.Thread(target=lambda: found.append(server.post(COMPLETIONS, body)))
    asking.start()
    for shift_s in (-3600.0, 7200.0, 0.0):
        time.sleep(0.1)
        monkeypatch.setattr(time, "time", lambda shift_s=shift_s: now_s + shift_s)
    asking.join(30)
    assert found[0].status_code == 200
    well(server)


def test_the_socket_to_the_engine_is_nobody_elses(server: Any, well: Any) -> None:
    """B-K07: only this user may reach it, and who comes second is not heard."""
    command = Path(f"/proc/{server.engine_pid}/cmdline").read_bytes().split(b"\0")
    path = Path(command[-2].decode())
    assert path.is_socket()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for junk in (b"", os.urandom(4096), b"\xff" * 8, b"\x05\x00\x00\x00abcde"):
        intruder = socket.socket(socket.AF_UNIX)
        intruder.connect(str(path))
        intruder.settimeout(10.0)
        try:
            intruder.sendall(junk)
            assert intruder.recv(1) == b""
        except ConnectionError:
            pass
        intruder.close()
    pid = server.engine_pid
    well(server)
    assert server.engine_pid == pid
