"""What is set before jax starts: only where there is a GPU, only what the user has left open, each with a reason."""

import os
import subprocess
import sys
from threading import Event, Thread

import pytest

from sarathi_jax import gpu_defaults


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One with a driver and the plugin, whose environment says nothing yet."""
    monkeypatch.setattr(gpu_defaults, "has_driver", lambda: True)
    monkeypatch.setattr(gpu_defaults, "has_plugin", lambda: True)
    for name in (
        "JAX_PLATFORMS",
        "XLA_FLAGS",
        *(each.name for each in (*gpu_defaults.ENVIRONMENT, *gpu_defaults.TRITON)),
    ):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_gpu_gets_all_of_them(machine: pytest.MonkeyPatch) -> None:
    gpu_defaults.apply_defaults()
    every = (*gpu_defaults.ENVIRONMENT, *gpu_defaults.TRITON)
    assert {each.name: os.environ[each.name] for each in every} == {each.name: each.value for each in every}
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_nccl_termination_timeout_seconds=120"
    assert "JAX_PLATFORMS" not in os.environ


def test_what_the_user_has_set_stays(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    machine.setenv("XLA_FLAGS", "--xla_gpu_nccl_termination_timeout_seconds=7 --xla_gpu_autotune_level=0")
    gpu_defaults.apply_defaults()
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_nccl_termination_timeout_seconds=7 --xla_gpu_autotune_level=0"


def test_jax_is_not_given_two_names_of_one_setting(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")
    gpu_defaults.apply_defaults()
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ


def test_twice_is_once(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    for _ in range(2):
        gpu_defaults.apply_defaults()
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_nccl_termination_timeout_seconds=120"
    assert os.environ["XLA_FLAGS"] == flags


def test_the_plugin_without_a_driver_means_the_cpu(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(gpu_defaults, "has_driver", lambda: False)
    gpu_defaults.apply_defaults()
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert "XLA_FLAGS" not in os.environ


def test_a_machine_without_the_plugin_is_left_alone(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(gpu_defaults, "has_plugin", lambda: False)
    before = dict(os.environ)
    gpu_defaults.apply_defaults()
    assert dict(os.environ) == before


def test_each_has_a_reason_and_options_are_for_gpus_alone() -> None:
    every = (*gpu_defaults.ENVIRONMENT, *gpu_defaults.TRITON, *gpu_defaults.XLA_FLAGS, *gpu_defaults.COMPILER_OPTIONS)
    assert all(len(each.reason) > 30 for each in every)
    assert gpu_defaults.compiler_options("gpu") == {"xla_disable_hlo_passes": "rematerialization"}
    assert gpu_defaults.compiler_options("cpu") == {}


@pytest.mark.skipif(
    gpu_defaults.has_driver() or not gpu_defaults.has_plugin(),
    reason="jax says nothing of GPUs where all is as it has to be",
)
@pytest.mark.parametrize(
    "program",
    [
        "from sarathi_jax import LLM; from sarathi_jax.sharding.mesh import make_mesh; make_mesh({})",
        "from sarathi_jax.gpu_defaults import start_on_cpu; start_on_cpu(); import jax; jax.numpy.zeros(1)",
    ],
)
def test_the_plugin_without_a_driver_is_no_reason_to_complain(program: str) -> None:
    """Nor in a program of one's own: nothing comes to standard error, past Python or through it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TF_CPP"))}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_jax_that_would_be_quiet_is_left_to_whoever_needs_it() -> None:
    """So that `doctor` can say that it is missing, and commands without it start at once."""
    program = (
        "import sys; from sarathi_jax import gpu_defaults; gpu_defaults.has_plugin = lambda: False\n"
        "gpu_defaults.import_jax_quietly(); print('jax' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


def test_two_threads_that_are_quiet_at_a_time_do_not_stay_so(capfd: pytest.CaptureFixture[str]) -> None:
    """The one that began first ends first: without taking turns, the other would put back the silence."""
    has_begun, may_end = Event(), Event()

    def first() -> None:
        with gpu_defaults.quiet_libraries():
            has_begun.set()
            may_end.wait(0.2)

    def second() -> None:
        has_begun.wait()
        with gpu_defaults.quiet_libraries():
            may_end.set()
            threads[0].join(0.2)

    threads = [Thread(target=first), Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
