"""Commands with several processes: process 0 starts the others on this machine, and the answer is that of one process."""

import os
import re
import subprocess
import sys

import pytest

from sarathi_jax import LLM, follow
from sarathi_jax.cli.main import main
from sarathi_jax.errors import ConfigError


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, whose jax has one device."""
    program = "import sys; from sarathi_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)


@pytest.mark.nightly
def test_two_processes_answer_as_one(capsys: pytest.CaptureFixture[str], tiny_options: list[str]) -> None:
    """They end with code 0, and standard output holds the answer alone."""
    words = ["generate", *tiny_options, "--prompt", "one", "--temperature", "0", "--max-tokens", "5"]
    capsys.readouterr()
    assert main(words) == 0
    alone = capsys.readouterr().out
    done = run(*words, "--num-processes", "2", "--mesh", "tensor=2")
    assert (done.returncode, done.stdout) == (0, alone), done.stderr


def test_processes_that_were_started_say_what_is_wrong_and_end(tiny_options: list[str]) -> None:
    """They have found each other by then, on their hosts and in jax."""
    done = run("generate", *tiny_options, "--prompt", "one", "--num-processes", "2")
    assert done.returncode == 1, done.stderr
    rule = "With several processes the mesh must use every device, got 1 of 2: write --mesh tensor=2"
    # All find it at the same time: process 0 says it of itself, or of the other one if it hears of that first. Each says it once.
    assert re.search(
        rf"sarathi-jax generate: error: (A group lives .* of process 1 \(.*\): )?{re.escape(rule)}", done.stderr
    )
    assert done.stderr.count(rule) == 2, done.stderr


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "follow",
            "A process must follow as one of 1, 2, ... of a group, got no group: pass num_processes, process_id",
        ),
        ("generate --process-id 1", "process_id=1 needs a coordinator, got none: pass --coordinator HOST:PORT"),
        (
            "generate --num-processes 2 --process-id 1 --coordinator 127.0.0.1:7700",
            "A group of processes needs a key, got neither SARATHI_JAX_GROUP_KEY nor SARATHI_JAX_GROUP_KEY_FILE",
        ),
    ],
)
def test_what_a_group_lacks_is_named(line: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1


def test_python_has_a_door_for_each(tiny_options: list[str]) -> None:
    options = {"num_processes": 2, "process_id": 1, "coordinator": "127.0.0.1:7700"}
    with pytest.raises(
        ConfigError, match=r"Only process 0 of a group takes requests, got process_id=1: call sarathi_jax.follow"
    ):
        LLM(tiny_options[0], load_format="dummy", **options)
    with pytest.raises(ConfigError, match=r"A process must follow as one of 1, 2, .* got process 0, which leads"):
        follow(tiny_options[0], load_format="dummy", **{**options, "process_id": 0})
    with pytest.raises(ConfigError, match="got tokn_budget: did you mean token_budget"):
        follow(tiny_options[0], tokn_budget=3)
