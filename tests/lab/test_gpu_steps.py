"""The whole step of mistral-7b, compiled for A100s that are not here: what moves between them, what is copied, what a CUDA graph holds.

In a process of its own: here, Triton is the interpreter. Broken, once each, and seen in these numbers: weights of the head gathered instead of logits, the
state not donated, kernels outside of `shard_map`, a conditional around the filters, rematerialization, and kernels that read slices of the packed array.
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
from sarathi_jax.lab.cost_inputs import model_shape
from sarathi_jax.lab.described_gpus import DESCRIBED_GPUS, GPUS_PER_HOST
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.hardware import default_system, load_device, load_host
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.placement import Placement
from sarathi_jax.simulation.step_work import prefill_work

ROOT = Path(__file__).parent.parent.parent
NUM_LAYERS, NUM_ROWS, VOCAB_SIZE = 32, 64, 32000
MESHES = (1, 2, 4, 8)

pytestmark = pytest.mark.skipif(
    not (find_spec("jax_cuda12_plugin") and find_spec("jax_triton")),
    reason="compiling for a GPU needs the aot extra: pip install 'sarathi-jax[aot]'",
)


def report(*arguments: str) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # it is for what runs here
    command = [sys.executable, "-m", "sarathi_jax.cli.main", "kernels", "step", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)["steps"]


@pytest.fixture(scope="module")
def steps() -> dict[tuple[int, str], dict[str, Any]]:
    """(GPUs, "decode" or "mixed") -> report."""
    meshes = [word for size in MESHES for word in ("--mesh", f"tensor={size}")]
    return {(each["mesh"]["tensor"], each["bucket"].split()[0]): each for each in report(*meshes)}


@pytest.fixture(params=[(size, step) for size in MESHES for step in ("decode", "mixed")], ids=str)
def step(request: pytest.FixtureRequest, steps: dict[tuple[int, str], dict[str, Any]]) -> dict[str, Any]:
    return steps[request.param]


def test_state_stays_in_place_and_nothing_large_is_copied(step: dict[str, Any]) -> None:
    assert step["alias_bytes"] == step["state_bytes"]
    assert (step["num_page_copies"], step["num_weight_copies"]) == (0, 0)


def test_temporary_memory_is_small(step: dict[str, Any]) -> None:
    assert step["logits_bytes"] == NUM_ROWS * VOCAB_SIZE * 4
    assert step["temp_bytes"] <= DESCRIBED_GPUS["a100-80g"].memory // 100 + step["logits_bytes"]


def test_collectives_are_those_counted_by_hand(step: dict[str, Any]) -> None:
    """Two all-reduces a layer, one of the embedding, and of the head's argmax the largest logit of each row and its id."""
    expected = {} if step["mesh"]["tensor"] == 1 else {"all-reduce": 2 * NUM_LAYERS + 1 + 2}
    assert step["collectives"] == expected


def test_the_cost_model_prices_the_talk_that_was_compiled(step: dict[str, Any]) -> None:
    """All of it but the argmax's two messages of a few hundred bytes."""
    num_gpus, num_tokens = step["mesh"]["tensor"], int(step["bucket"].split()[1].split("x")[0])
    placement = Placement(num_hosts=1, gpus_per_host=GPUS_PER_HOST, tensor=num_gpus)
    links = Links(default_system("a100-80g", GPUS_PER_HOST))
    shape = model_shape(BUILTIN_MODELS["mistral-7b"], 2, "bfloat16")
    model = CostModel(shape, load_device("a100-80g"), placement, links, load_host("sarathi-jax"))
    priced_s = model.step(prefill_work(num_tokens)).stages[0].all_reduce_s
    large = [each for each in step["traffic"] if each["num_bytes"] > 2**12]
    assert sum(each["count"] * each["seconds"] for each in large) == pytest.approx(priced_s)
    assert all(each["axes"] == ["tensor"] and each["num_hosts"] == 1 for each in step["traffic"])


def test_kernels_are_called_and_the_host_sends_one_array(step: dict[str, Any]) -> None:
    """Rotation and write, attention, and the merge of what it cut."""
    assert step["num_kernel_calls"] == 3 * NUM_LAYERS
    assert (step["num_host_arrays"], step["num_sliced_calls"]) == (1, 0)


def test_one_gpu_runs_a_step_as_one_graph(steps: dict[tuple[int, str], dict[str, Any]]) -> None:
    for name in ("decode", "mixed"):
        assert (steps[1, name]["num_graphs"], steps[1, name]["outside_graphs"]) == (1, {})


def test_of_several_gpus_all_reduces_cut_the_graph_and_nothing_waits_for_the_host(step: dict[str, Any]) -> None:
    assert not step["outside_graphs"].keys() & {"kWhile", "kConditional"}
    assert step["outside_graphs"].get("kAllReduce", 0) == step["collectives"].get("all-reduce", 0)


def test_drawing_is_part_of_the_graph_and_gathers_logits_once() -> None:
    one, mixed, two, _ = report("--variant", "sample", "--mesh", "tensor=1", "--mesh", "tensor=2")
    for step in (one, mixed):
        assert (step["num_graphs"], step["outside_graphs"]) == (1, {})
        assert step["num_kernel_calls"] == 3 * NUM_LAYERS + 1
    assert two["collectives"] == {"all-reduce": 2 * NUM_LAYERS + 1, "all-gather": 1}
    assert two["num_weight_copies"] == 0


def test_int8_pages_stay_in_place_too() -> None:
    """Nine tenths of what weights leave, in tokens of 32 layers' keys and values of 8 heads, each of 128 bytes and a scale of 4."""
    step, _ = report("--kv-dtype", "int8", "--num-rows", "8")
    assert step["alias_bytes"] == step["state_bytes"]
    assert step["num_page_copies"] == 0
    left = (DESCRIBED_GPUS["a100-80g"].memory - step["weight_bytes"]) * 0.9
    assert step["num_kv_tokens"] == pytest.approx(left / (32 * 2 * 8 * (128 + 4)), rel=1e-3)
