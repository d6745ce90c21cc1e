"""Two processes with 4 devices each, as one engine: transformers' tokens, with preemption and the prefix cache on; and what becomes of the group when the
second process is killed, or stopped, while requests run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sarathi_jax.group.launch import free_port

LIMIT_S = 5.0  # within which a lost process is named


class Two(NamedTuple):
    """The processes of a group."""

    first: subprocess.Popen[str]
    second: subprocess.Popen[str]

    def read(self) -> dict[str, Any]:
        """The next line that the first one prints."""
        assert self.first.stdout is not None and self.first.stderr is not None
        line = self.first.stdout.readline()
        assert line, f"process 0 ended: {self.first.stderr.read()}"
        return json.loads(line)


@contextmanager
def started(golden: Any, folder: Path, mesh: str) -> Iterator[Two]:
    """Both processes, on their way."""
    # The golden models' vocabularies don't divide.
    (folder / "rules.toml").write_text("vocab = []\n")
    options = {"model": str(golden.folder), "mesh": mesh, "rules": str(folder / "rules.toml")}
    options |= {"token_budget": 16, "max_num_seqs": 2, "page_size": 4, "preempt_every_steps": 9}
    options |= {"num_processes": 2, "coordinator": f"127.0.0.1:{free_port()}"}
    prompts = [golden.arrays[f"prompt/{length}"].tolist() for length in golden.lengths("greedy")]
    order = {"prompts": prompts}
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "SARATHI_JAX_GROUP_KEY": "a key for a test of two"}
    processes = []
    for process_id in range(2):
        words = json.dumps({**order, "options": {**options, "process_id": process_id}})
        command = [sys.executable, str(Path(__file__).parent / "one_of_two.py"), words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=env, **pipes))
    two = Two(*processes)
    try:
        yield two
    finally:
        for process in two:
            process.kill()
            process.communicate()


def check_tokens(two: Two, golden: Any) -> None:
    rounds = two.read(), two.read()
    for each in rounds:
        assert each["tokens"] == [golden.arrays[f"greedy/{length}"].tolist() for length in golden.lengths("greedy")]
        assert each["num_preemptions"] > 0
    assert rounds[1]["num_prefix_hit_tokens"] > 0


@pytest.mark.parametrize(
    ("name", "mesh", "signal_number", "reason"),
    [
        ("qwen3-yarn", "tensor=8", signal.SIGKILL, "its connection is closed"),
        ("qwen3-yarn", "data=2,tensor=4", signal.SIGKILL, "its connection is closed"),
        ("mistral-yarn", "stage=2,tensor=4", signal.SIGSTOP, "nothing was heard of it for 3."),
    ],
)
def test_tokens_are_those_of_transformers_and_a_lost_process_is_named(
    name: str, mesh: str, signal_number: int, reason: str, make_golden: Callable[[str], Any], tmp_path: Path
):
    golden = make_golden(name)
    with started(golden, tmp_path, mesh) as two:
        check_tokens(two, golden)
        assert two.read() == {"is_running": True}
        time.sleep(0.5)
        lost_s = time.time()
        two.second.send_signal(signal_number)
        for _ in range(3):  # what runs, a stream that is open, and a later call
            told = two.read()
            assert told["at"] - lost_s < LIMIT_S
            assert (
                f"got no more of process 1 (host {os.uname().nodename}, pid {two.second.pid}): {reason}"
                in told["error"]
            )
        assert two.first.wait(LIMIT_S) == 1
