"""Real processes, without devices, that are killed or stopped: everybody else names them within 5 s, and ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sarathi_jax.group.launch import free_port

LIMIT_S = 5.0
NUM_PROCESSES = 3


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """A group that is ready."""
    program, port = str(Path(__file__).parent / "one_process.py"), str(free_port())
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, program, str(NUM_PROCESSES), str(each), port], **pipes)
        for each in range(NUM_PROCESSES)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # until all have heard that all are ready
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "lost"),
    [(signal.SIGKILL, 0), (signal.SIGKILL, 2), (signal.SIGTERM, 2), (signal.SIGSTOP, 0), (signal.SIGSTOP, 2)],
)
def test_a_lost_process_is_named_by_all_others_who_end(
    processes: list[subprocess.Popen[str]], lost: int, number: int
) -> None:
    start_s = time.monotonic()
    processes[lost].send_signal(number)
    reason = "nothing was heard of it for" if number == signal.SIGSTOP else "its connection is closed"
    for process_id in {*range(NUM_PROCESSES)} - {lost}:
        _, said = processes[process_id].communicate(timeout=LIMIT_S)
        assert (
            f"got no more of process {lost} (host {os.uname().nodename}, pid {processes[lost].pid}): {reason}" in said
        )
        assert processes[process_id].returncode == 1
    assert time.monotonic() - start_s < LIMIT_S

    if number == signal.SIGSTOP:  # and when it wakes up, too late, it ends too
        processes[lost].send_signal(signal.SIGCONT)
        _, said = processes[lost].communicate(timeout=LIMIT_S)
        assert processes[lost].returncode == 1
        assert "got no more of process" in said
