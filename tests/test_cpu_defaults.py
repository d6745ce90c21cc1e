"""Threads of steps on a CPU: fewer only for a narrow model, in a process that runs no other, and where nobody else has a say."""

import os
import subprocess
import sys

import pytest

from sarathi_jax import LLM, cpu_defaults
from sarathi_jax.cpu_defaults import MIN_SHARED_SIZE, choose_threads, claim_process


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One that was claimed, on a machine without a GPU, whose environment says nothing yet."""
    monkeypatch.setattr(cpu_defaults, "_claimed", False)
    monkeypatch.setattr(cpu_defaults, "has_driver", lambda: False)
    for name in cpu_defaults.THREADS:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    claim_process()
    return monkeypatch


def threads() -> dict[str, str]:
    return {name: os.environ[name] for name in cpu_defaults.THREADS if name in os.environ}


def test_a_narrow_model_has_one(process: pytest.MonkeyPatch) -> None:
    choose_threads(MIN_SHARED_SIZE - 1)
    assert threads() == {"PJRT_NPROC": "1"}


def test_a_model_whose_products_are_worth_sharing_has_all(process: pytest.MonkeyPatch) -> None:
    choose_threads(MIN_SHARED_SIZE)
    assert threads() == {}


def test_a_process_that_may_run_other_models_stays_as_it_is(process: pytest.MonkeyPatch) -> None:
    process.setattr(cpu_defaults, "_claimed", False)
    choose_threads(128)
    assert threads() == {}


@pytest.mark.parametrize("name", cpu_defaults.THREADS)
def test_what_the_user_has_set_stays(process: pytest.MonkeyPatch, name: str) -> None:
    process.setenv(name, "3")
    choose_threads(128)
    assert threads() == {name: "3"}


@pytest.mark.parametrize(("platforms", "wanted"), [(None, {}), ("cuda,cpu", {}), ("cpu", {"PJRT_NPROC": "1"})])
def test_a_gpu_does_without_unless_it_is_not_to_be_used(
    process: pytest.MonkeyPatch, platforms: str | None, wanted: dict[str, str]
) -> None:
    process.setattr(cpu_defaults, "has_driver", lambda: True)
    process.setattr(cpu_defaults, "has_plugin", lambda: True)
    process.delenv("JAX_PLATFORMS", raising=False)
    if platforms is not None:
        process.setenv("JAX_PLATFORMS", platforms)
    choose_threads(128)
    assert threads() == wanted


def test_an_engine_chooses_by_its_model(process: pytest.MonkeyPatch) -> None:
    LLM("demo", progress=False, max_num_seqs=1, token_budget=16, max_model_len=32).close()
    assert threads() == {"PJRT_NPROC": "1"}


OPTIONS = {"max_num_seqs": 1, "token_budget": 16, "max_model_len": 32}
FLAGS = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
COMMAND = f"""
from sarathi_jax.cli.main import main
main(["generate", "demo", "--prompt", "2+3=", "--max-tokens", "1", *{FLAGS}])
"""
SERVERS_ENGINE = f"""
from unittest.mock import Mock
from sarathi_jax.serve.engine_process import start_engine
from sarathi_jax.serve.messages import Start
start_engine(Start({{"model": "demo", **{OPTIONS}}}, False, "text", "info"), Mock()).close()
"""


@pytest.mark.parametrize("program", [COMMAND, SERVERS_ENGINE])
def test_commands_and_the_servers_engine_claim_their_process(process: pytest.MonkeyPatch, program: str) -> None:
    program += "import os\nprint(os.environ.get('PJRT_NPROC'))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "1"
