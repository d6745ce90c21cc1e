"""Sarathi-Serve's evaluation (arXiv 2403.02310) as the simulator runs it: its models on its GPUs, its engine, its schedulers, its lengths. Numbers stand in paper.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sarathi_jax.simulation.arrivals import with_arrivals
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.hardware import load_device, load_host, load_system
from sarathi_jax.simulation.lengths import FITTED
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.placement import Placement
from sarathi_jax.simulation.workloads import RequestShape

DATA = Path(__file__).with_name("paper.json")
STRICT, RELAXED = "strict", "relaxed"
SLOS = (STRICT, RELAXED)
POLICIES = ("orca", "vllm", "sarathi")
SEED = 0  # of lengths and arrivals


@dataclass(frozen=True, slots=True)
class Claim:
    """What the paper's text says: capacity of sarathi over that of a baseline."""

    model: str
    lengths: str
    slo: str
    over: str
    ratio: float
    where: str


@cache
def paper() -> Mapping[str, Any]:
    """All of the file."""
    return json.loads(DATA.read_text(encoding="utf-8"))


def models() -> tuple[str, ...]:
    return tuple(paper()["models"])


def claims() -> list[Claim]:
    return [Claim(**entry) for entry in paper()["claims"]]


def tbt_slo_s(model: str, slo: str) -> float:
    return paper()["models"][model]["slos_s"][SLOS.index(slo)]


def paper_budget(model: str, slo: str) -> int:
    """Tokens of sarathi's step that the paper chose for an SLO."""
    return paper()["models"][model]["budgets"][SLOS.index(slo)]


def num_stages(model: str) -> int:
    return paper()["models"][model]["stage"]


def load(lengths: str, num_requests: int, seed: int = SEED) -> list[RequestShape]:
    """Requests of one of the paper's two data sets, arriving as a Poisson process, one a second."""
    return with_arrivals(FITTED[lengths].draw(num_requests, seed), 1.0, seed)


@cache
def shape_of(model: str) -> ModelShape:
    """The model's sizes, numbers of 16 bits."""
    # Device code, which the processes that search for capacities are spared: they are given the shape.
    from sarathi_jax.checkpoints.builtin_models import BUILTIN_MODELS
    from sarathi_jax.lab.cost_inputs import model_shape

    return model_shape(BUILTIN_MODELS[model], 2, "float16")


def cost_model(model: str, shape: ModelShape | None = None, **mesh: int) -> CostModel:
    """shape: None looks it up. mesh: tensor and stage, where they are not the paper's."""
    entry = paper()["models"][model]
    sizes = {"tensor": entry["tensor"], "stage": entry["stage"]} | mesh
    placement = Placement(num_hosts=entry["hosts"], gpus_per_host=entry["gpus_per_host"], **sizes)
    return CostModel(
        shape_of(model) if shape is None else shape,
        load_device(entry["device"]),
        placement,
        Links(load_system(entry["system"])),
        load_host(entry["host"]),
        has_split_sends=True,
    )


def deploy(model: str, lengths: str, policy: str, token_budget: int | None = None, **options: Any) -> Deployment:
    """The paper's engine: plain loop, stages in series, host code and memory of Sarathi-Serve's.

    token_budget: of a policy that splits prompts. vllm's is the longest request; orca's step holds whatever its batch may bring.
    options: other fields of a deployment, and `shape` and `mesh` as `cost_model` has them.
    """
    entry, longest = paper()["models"][model], FITTED[lengths].max_total_tokens
    settings: dict[str, Any] = {**paper()["engine"], "token_budget": token_budget or longest}
    if policy == "orca":
        batch = entry["orca_batch"]
        settings |= {"max_num_seqs": batch, "watermark": 0.0, "token_budget": batch * (longest + 1)}
    mesh, shape = options.pop("mesh", {}), options.pop("shape", None)
    settings |= options
    return Deployment(
        cost_model=cost_model(model, shape, **mesh),
        max_model_len=longest,
        policy=policy,
        is_overlapped=False,
        has_lock_step=False,
        **settings,
    )
