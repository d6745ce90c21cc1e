"""Steps of families with layers of their own, compiled for A100s that are not here: what they talk about, and that no weight is copied.

Broken, once each, and seen in these numbers: Falcon's attention behind a barrier, so that both sums travel together; routing left to the partitioner.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.checkpoints.builtin_models import BUILTIN_MODELS
from sarathi_jax.lab.described_gpus import DESCRIBED_GPUS

ROOT = Path(__file__).parent.parent.parent
NUM_ROWS = 64
TOKENS = {"decode": NUM_ROWS, "mixed": 512}
MEMORY = DESCRIBED_GPUS["a100-80g"].memory

pytestmark = pytest.mark.skipif(
    not (find_spec("jax_cuda12_plugin") and find_spec("jax_triton")),
    reason="compiling for a GPU needs the aot extra: pip install 'sarathi-jax[aot]'",
)


def steps(model: str, mesh: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """ "decode" or "mixed" -> report."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # it is for what runs here
    command = [sys.executable, "-m", "sarathi_jax.cli.main", "kernels", "step", "--json"]
    command += ["--model", model, "--mesh", mesh, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return {each["bucket"].split()[0]: each for each in json.loads(done.stdout)["steps"]}


def check(model: str, reports: dict[str, dict[str, Any]], axes: list[str], num_hidden: int) -> None:
    """All that goes over the wires: the hidden states so many times, and of the head's argmax two numbers a row."""
    assert reports.keys() == TOKENS.keys()
    for name, step in reports.items():
        hidden_bytes = TOKENS[name] * BUILTIN_MODELS[model].hidden_size * 2
        talk = {(each["kind"], tuple(each["axes"]), each["num_bytes"]): each["count"] for each in step["traffic"]}
        assert talk == {
            ("all-reduce", tuple(axes), hidden_bytes): num_hidden,
            ("all-reduce", tuple(axes), NUM_ROWS * 4): 2,
        }
        assert (step["num_page_copies"], step["num_weight_copies"]) == (0, 0)
        assert step["alias_bytes"] == step["state_bytes"]
        assert step["temp_bytes"] <= MEMORY // 100 + step["logits_bytes"]


def test_a_parallel_layer_of_falcon_costs_one_all_reduce() -> None:
    """One of each layer, and one of the embedding."""
    check("falcon-180b", steps("falcon-180b", "tensor=4", "--num-layers", "2"), ["tensor"], 2 + 1)


def test_a_mixture_of_experts_costs_one_all_reduce() -> None:
    """As an MLP does: two of each layer, and one of the embedding, of all devices that experts and their width are cut over."""
    check("mixtral-8x7b", steps("mixtral-8x7b", "expert=4,tensor=2", "--num-layers", "2"), ["expert", "tensor"], 4 + 1)
