"""The paper's largest models, and a mixture of experts, compiled for eight A100s that are not here: they fit as predicted, and talk as counted by hand.

In processes of their own: here, Triton is the interpreter. Each takes about a minute of two cores.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
EMBEDDING, ROWS_TO_ALL, ARGMAX = 1, 1, 2

pytestmark = pytest.mark.skipif(
    not (find_spec("jax_cuda12_plugin") and find_spec("jax_triton")),
    reason="compiling for a GPU needs the aot extra: pip install 'sarathi-jax[aot]'",
)


@dataclass(frozen=True)
class Case:
    """A model on a mesh. num_weights: numbers in the weights of one device, norms left out, and all_reduces: (axis, how many) of a step, both by hand."""

    model: str
    topology: str
    mesh: str
    num_weights: float
    all_reduces: tuple[tuple[str, int], ...]
    num_permutes: int


def layer(hidden: int, heads: int, kv_heads: int, head_dim: int, mlp: int) -> int:
    """Numbers in the weights of a layer: queries and output, keys and values, and all products of the MLP together, of this width."""
    return hidden * head_dim * 2 * (heads + kv_heads) + hidden * mlp


# Falcon: two products of 59,392, one all-reduce a layer, the head is the embedding. LLaMA2: gate, up and down, two all-reduces. Mixtral: the attention is cut
# over the experts' axis, a device has one of the eight experts, and every device the routers.
FALCON = layer(14848, 232, 8, 64, 2 * 59392)
LLAMA = layer(8192, 64, 8, 128, 3 * 28672)
MIXTRAL = layer(4096, 32, 8, 128, 8 * 3 * 14336)
CASES = [
    Case(
        "falcon-180b",
        "2x4",
        "stage=2,tensor=4",
        40 * FALCON / 4 + 65024 * 14848 / 4,
        (("tensor", 40 + EMBEDDING + ARGMAX), ("stage", ROWS_TO_ALL)),
        1,
    ),
    Case(
        "falcon-180b", "2x4", "tensor=8", 80 * FALCON / 8 + 65024 * 14848 / 8, (("tensor", 80 + EMBEDDING + ARGMAX),), 0
    ),
    Case(
        "llama2-70b",
        "2x4",
        "stage=2,tensor=4",
        40 * LLAMA / 4 + 2 * 32000 * 8192 / 4,
        (("tensor", 2 * 40 + EMBEDDING + ARGMAX), ("stage", ROWS_TO_ALL)),
        1,
    ),
    Case(
        "mixtral-8x7b",
        "1x8",
        "expert=8",
        32 * (MIXTRAL / 8 + 4096 * 8) + 2 * 32000 * 4096 / 8,
        (("expert", 2 * 32 + EMBEDDING + ARGMAX),),
        0,
    ),
]


def plan(case: Case) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # it is for what runs here
    system = ["--system", "dgx-a100"] if case.topology == "1x8" else []
    command = [
        sys.executable,
        "-m",
        "sarathi_jax.cli.main",
        "plan",
        case.model,
        "--json",
        "--device",
        "a100-80g",
        *system,
    ]
    command += ["--topology", case.topology, "--mesh", case.mesh, "--token-budget", "512"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)["layouts"][0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model} {case.mesh}")
def test_it_fits_as_predicted_and_talks_as_counted_by_hand(case: Case) -> None:
    layout = plan(case)
    assert layout["why_not"] is None
    memory = layout["memory"]
    assert memory["weight_bytes"] == pytest.approx(2 * case.num_weights, rel=1e-3)
    assert memory["temp_bytes"] < memory["limit_bytes"] / 100
    for name in ("decode", "full"):
        step = layout["compiled"][name]
        assert step["alias_bytes"] == step["state_bytes"]
        assert (step["num_page_copies"], step["num_weight_copies"], step["num_sliced_calls"]) == (0, 0, 0)
        assert count(step, "all-reduce") == dict(case.all_reduces)
        assert sum(count(step, "collective-permute").values()) == case.num_permutes
        assert set(step["collectives"]) <= {"all-reduce", "collective-permute"}


def count(step: dict[str, Any], kind: str) -> dict[str, int]:
    """Collectives of a kind, by mesh axis."""
    found: dict[str, int] = {}
    for each in step["traffic"]:
        if each["kind"] == kind:
            axis = ",".join(each["axes"])
            found[axis] = found.get(axis, 0) + each["count"]
    return found
