"""A deployment planned by the cost model alone: what a mesh leaves for KV, what its steps take, and all meshes of some GPUs side by side."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sarathi_jax.errors import ConfigError
from sarathi_jax.gpu_defaults import ENVIRONMENT, MEMORY_FRACTION
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.hardware import Device, HostCost, System
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.placement import Cuts, Placement, why_not
from sarathi_jax.simulation.step_work import ChunkWork, StepWork, decode_work

JAX_SHARE = float(next(each.value for each in ENVIRONMENT if each.name == MEMORY_FRACTION))
RANKINGS = ("latency", "tbt", "throughput")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the deployment has to do. batch_size: requests that decode at a time, over all replicas. context: tokens that each attends to. token_budget: of a step."""

    batch_size: int
    context: int
    token_budget: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "context", "token_budget"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}: choose a larger one.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model on some GPUs. memory_fraction: of what jax has of a device. max_model_len: tokens of the longest request, whose KV has to fit. cuts: the sharding table's."""

    model: ModelShape
    device: Device
    system: System
    host: HostCost
    num_hosts: int
    gpus_per_host: int
    max_model_len: int
    memory_fraction: float
    cuts: Cuts

    @property
    def limit_bytes(self) -> int:
        """What the engine may use of a device."""
        return int(self.device.memory_bytes * JAX_SHARE * self.memory_fraction)

    def place(self, **mesh: int) -> Placement:
        """A mesh on these GPUs. Raises: ConfigError if it has more than there are."""
        return Placement(num_hosts=self.num_hosts, gpus_per_host=self.gpus_per_host, **mesh)

    def cost_model(self, placement: Placement) -> CostModel:
        return CostModel(self.model, self.device, placement, Links(self.system), self.host, self.cuts)


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """One microbatch of each replica.

    tick_s: until the next one; latency_s: until its tokens, through all stages. parts: of a tick, name -> seconds. host_s: of host code, which runs at the same
    time and counts where it takes longer. tokens_per_s: of all replicas.
    flop, hbm_bytes: of the busiest device in a tick; flop_share, bandwidth_share: of the datasheet's peaks that they come to.
    """

    num_tokens: int
    num_rows: int
    tick_s: float
    latency_s: float
    tokens_per_s: float
    parts: Mapping[str, float]
    host_s: float
    flop: float
    hbm_bytes: float
    flop_share: float
    bandwidth_share: float

    @property
    def talk_s(self) -> float:
        """The part of a tick that goes into talk between devices."""
        return self.parts["all_reduce_s"] + self.parts["send_s"]


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on a device. kv_tokens: of one replica; below 0 if the weights alone are too much. temp_bytes: of the largest step, and a bound if nothing was compiled."""

    limit_bytes: int
    weight_bytes: int
    temp_bytes: int
    kv_token_bytes: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A mesh, planned. why_not: what stands against it, or None; then there may be no estimates. decode: decodes alone. full: decodes, and a chunk up to the token budget."""

    placement: Placement
    why_not: str | None
    memory: MemoryEstimate | None = None
    decode: StepEstimate | None = None
    full: StepEstimate | None = None


def plan_layout(deployment: Deployment, placement: Placement, load: Load) -> Layout:
    """One mesh, by the cost model."""
    rows = math.ceil(load.batch_size / (placement.data * placement.stage))
    reason = why_not(deployment.model, placement, deployment.cuts)
    if reason is None and rows >= load.token_budget:
        reason = f"{rows} decodes of a microbatch leave no token of a budget of {load.token_budget} for prompts"
    if reason:
        return Layout(placement, reason)
    cost_model = deployment.cost_model(placement)
    memory = _memory(deployment, cost_model, load, rows)
    reason = shortage(deployment, placement, memory, load)
    decode, full = decode_step(rows, load), full_step(rows, load)
    return Layout(placement, reason, memory, _estimate(cost_model, decode), _estimate(cost_model, full))


def decode_step(num_rows: int, load: Load) -> StepWork:
    return decode_work(num_rows, load.context)


def full_step(num_rows: int, load: Load) -> StepWork:
    """Decodes, and a chunk halfway through a prompt as long as the context; there is a token left for it."""
    num_new = load.token_budget - num_rows
    chunk = ChunkWork(max(load.context - num_new, 0) // 2, num_new)
    return StepWork((chunk,), num_rows, num_rows * load.context)


def compare_layouts(deployment: Deployment, load: Load, rank_by: str = "latency") -> list[Layout]:
    """All meshes that take all of the GPUs, best first, and behind them those that can't be.

    rank_by: "latency", of a decode among decodes alone; "tbt", of one in steps of the full budget; "throughput", tokens a second of these.
    """
    layouts = [plan_layout(deployment, placement, load) for placement in _placements(deployment)]
    return sorted(layouts, key=lambda layout: _rank(layout, rank_by))


def _placements(deployment: Deployment) -> Iterator[Placement]:
    num_devices = deployment.num_hosts * deployment.gpus_per_host
    has_experts = deployment.model.num_experts > 0
    for data in _divisors(num_devices):
        for stage in _divisors(num_devices // data):
            left = num_devices // data // stage
            for expert in _divisors(left) if has_experts else (1,):
                yield deployment.place(data=data, stage=stage, expert=expert, tensor=left // expert)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _rank(layout: Layout, rank_by: str) -> tuple[Any, ...]:
    if layout.decode is None or layout.full is None:
        return 2, layout.placement.describe()
    keys = {
        "latency": layout.decode.latency_s,
        "tbt": layout.full.latency_s,
        "throughput": -layout.full.tokens_per_s,
    }
    return 1 if layout.why_not else 0, keys[rank_by]


# ---- memory ----


def _memory(deployment: Deployment, cost_model: CostModel, load: Load, num_rows: int) -> MemoryEstimate:
    temp_bytes = estimated_temp_bytes(cost_model, max(load.token_budget, num_rows), num_rows)
    return memory_of(deployment, cost_model.weight_bytes, temp_bytes, cost_model.kv_bytes_per_token)


def memory_of(deployment: Deployment, weight_bytes: int, temp_bytes: int, kv_token_bytes: int) -> MemoryEstimate:
    """How the engine would divide a device's memory."""
    left = deployment.limit_bytes - weight_bytes - temp_bytes
    return MemoryEstimate(deployment.limit_bytes, weight_bytes, temp_bytes, kv_token_bytes, left // kv_token_bytes)


def estimated_temp_bytes(cost_model: CostModel, num_tokens: int, num_rows: int) -> int:
    """Temporary memory of a step, rather too much: logits in float32 and the widest activations of a layer, twice each, and a little for all else."""
    model, cuts = cost_model.model, cost_model.cuts
    columns = 2 * model.mlp_size * max(model.experts_per_token, 1) / cost_model.placement.size(cuts.mlp)
    heads = 2 * model.num_heads * model.head_dim / cost_model.placement.size(cuts.heads)
    widest = 2 * model.hidden_size + max(columns, heads)
    logits = model.vocab_size / cost_model.placement.size(cuts.vocab)
    return int(2 * (num_rows * logits * 4 + num_tokens * widest * 2)) + (16 << 20)


def shortage(deployment: Deployment, placement: Placement, memory: MemoryEstimate, load: Load) -> str | None:
    """What does not fit, with the arithmetic, or None."""
    if memory.kv_tokens < deployment.max_model_len:
        return (
            f"weights {gib(memory.weight_bytes)} + temporary {gib(memory.temp_bytes)} + KV of one request of {deployment.max_model_len:,} tokens"
            f" {gib(deployment.max_model_len * memory.kv_token_bytes)} exceed {gib(memory.limit_bytes)}"
        )
    num_requests = math.ceil(load.batch_size / placement.data)
    if memory.kv_tokens < num_requests * load.context:
        return (
            f"KV of {memory.kv_tokens:,} tokens a replica holds {memory.kv_tokens // load.context} of its {num_requests} requests of"
            f" {load.context:,} tokens"
        )
    return None


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


# ---- steps ----


def _estimate(cost_model: CostModel, work: StepWork) -> StepEstimate:
    cost, placement = cost_model.step(work), cost_model.placement
    tick_s = cost.tick_s
    flop, hbm_bytes = (max(getattr(stage, name) for stage in cost.stages) for name in ("flop", "hbm_bytes"))
    return StepEstimate(
        num_tokens=work.num_tokens,
        num_rows=work.num_rows,
        tick_s=tick_s,
        latency_s=placement.stage * tick_s,
        tokens_per_s=placement.data * work.num_tokens / tick_s,
        parts=cost.tick,
        host_s=cost.host_s,
        flop=flop,
        hbm_bytes=hbm_bytes,
        flop_share=flop / tick_s / cost_model.device.peak_flop_per_s,
        bandwidth_share=hbm_bytes / tick_s / cost_model.device.peak_bytes_per_s,
    )
