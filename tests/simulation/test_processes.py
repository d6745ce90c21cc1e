"""Work in other processes: the same results in the same order, errors as they were raised, and no jax."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sarathi_jax.errors import ConfigError, EngineError
from sarathi_jax.simulation.arrivals import with_poisson_arrivals
from sarathi_jax.simulation.capacity import Criterion, search_capacity
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.hardware import load_device
from sarathi_jax.simulation.lengths import Synthetic
from sarathi_jax.simulation.processes import in_processes, num_cores
from sarathi_jax.simulation.rate_search import Capacity

PROGRAM = """
import sys
from sarathi_jax.simulation.processes import in_processes

def loaded(name):
    return name in sys.modules

if __name__ == "__main__":
    sys.modules["jax"] = sys  # as if it had been imported here
    print(in_processes(loaded, ["jax", "sarathi_jax"], num_processes=2))
"""


@pytest.mark.parametrize("num_processes", [1, 2])
def test_capacities_are_the_same_in_whatever_process(num_processes: int, cost_model: Callable[..., CostModel]) -> None:
    """A deployment finds its way into another process whole."""
    prices = cost_model("mistral-7b", "a100-80g", "dgx-a100", "sarathi-jax", num_hosts=1, gpus_per_host=1)
    deployment = Deployment(cost_model=prices, max_model_len=512)
    shapes = with_poisson_arrivals(Synthetic(max_prompt_tokens=256, max_output_tokens=8).draw(12, 0), 1.0, seed=0)
    told: dict[int, Capacity] = {}
    criteria = [Criterion(tbt_slo_s=slo_s) for slo_s in (0.001, 0.02, 0.1)]
    found = in_processes(
        partial(search_capacity, deployment, shapes), criteria, num_processes=num_processes, on_done=told.__setitem__
    )
    assert found == [search_capacity(deployment, shapes, criterion) for criterion in criteria]
    assert [told[number] for number in range(3)] == found
    assert found[0].requests_per_s == 0 < found[2].requests_per_s


def test_an_error_comes_as_it_was_raised() -> None:
    with pytest.raises(ConfigError, match="device must be one of"):
        in_processes(load_device, ["a100-80g", "abacus"], num_processes=2)


def test_a_lost_process_is_an_error_with_a_remedy() -> None:
    with pytest.raises(EngineError, match="use fewer"):
        in_processes(os._exit, [3], num_processes=2)


def test_no_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        in_processes(abs, [1], num_processes=0)
    assert num_cores() >= 1


def test_processes_stay_without_jax(tmp_path: Path) -> None:
    """Even where this one has it: a second and 100 MB each."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "[False, True]\n"
