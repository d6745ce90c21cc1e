"""Where a model's parts go: the sizes of a mesh's axes over hosts and their GPUs, what is cut over which of them, and who talks to whom.

Devices are numbered host by host, and mesh axes are in the order data, stage, expert, tensor: neighbours in `tensor` are neighbours in a host.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.model_shape import ModelShape

AXES = ("data", "stage", "expert", "tensor")
LAYER_AXES = ("expert", "tensor")  # what the parts of a layer can be cut over
Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """The mesh axes that each part of a layer is cut over, () being whole on every device; named as the sharding rules name them. The default is Megatron's cut.

    tokens: of the residual stream between the parts of a layer (sequence parallelism).
    """

    heads: Axes = LAYER_AXES
    kv_heads: Axes = LAYER_AXES
    mlp: Axes = LAYER_AXES
    vocab: Axes = LAYER_AXES
    expert: Axes = ("expert",)
    expert_mlp: Axes = ("tensor",)
    tokens: Axes = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that take part in one collective, seen from their links.

    gpus_per_host: most of them on one host. span: from the first to the last of those, both counted. num_rivals: groups that cross a host's network at the same time.
    """

    num_devices: int
    num_hosts: int
    gpus_per_host: int
    span: int
    num_rivals: int = 1


def group_of(devices: Sequence[int], gpus_per_host: int, num_rivals: int = 1) -> Group:
    """The group of these devices, by number."""
    hosts = Counter(device // gpus_per_host for device in devices)
    fullest = hosts.most_common(1)[0][0]
    there = [device for device in devices if device // gpus_per_host == fullest]
    return Group(len(devices), len(hosts), len(there), max(there) - min(there) + 1, num_rivals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A mesh over hosts. data: replicas of the whole engine, which no step spans.

    Raises: ConfigError if a size is below 1, or the mesh needs more GPUs than there are.
    """

    num_hosts: int
    gpus_per_host: int
    data: int = 1
    stage: int = 1
    expert: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.num_hosts, self.gpus_per_host, *(getattr(self, axis) for axis in AXES))
        if min(sizes) < 1:
            raise ConfigError(
                f"sizes of a mesh and of its hosts must be at least 1, got {min(sizes)}: choose larger ones."
            )
        if self.data * self.devices_per_replica > self.num_devices:
            raise ConfigError(
                f"mesh {self.describe()} must fit on {self.num_hosts} hosts of {self.gpus_per_host} GPUs, got"
                f" {self.data * self.devices_per_replica}: make the mesh smaller."
            )

    @property
    def num_devices(self) -> int:
        return self.num_hosts * self.gpus_per_host

    @property
    def devices_per_stage(self) -> int:
        return self.expert * self.tensor

    @property
    def devices_per_replica(self) -> int:
        return self.stage * self.devices_per_stage

    def size(self, axes: Axes) -> int:
        """How many parts a cut over these axes makes."""
        return math.prod(getattr(self, axis) for axis in axes)

    def group(self, axes: Axes) -> Group:
        """The devices of one stage that talk along these axes; of all stages, the group that reaches over most hosts."""
        experts = range(self.expert if "expert" in axes else 1)
        tensors = range(self.tensor if "tensor" in axes else 1)
        rivals = self.devices_per_stage // self.size(axes)
        starts = range(0, self.devices_per_replica, self.devices_per_stage)
        groups = [
            group_of([start + e * self.tensor + t for e in experts for t in tensors], self.gpus_per_host, rivals)
            for start in starts
        ]
        return max(groups, key=lambda group: (group.num_hosts, group.span))

    @property
    def has_remote_stages(self) -> bool:
        """Whether some stage sends to one on another host. All send at once, so that the slowest counts."""
        size, per_host = self.devices_per_stage, self.gpus_per_host
        return any((device // per_host) != ((device + size) // per_host) for device in range((self.stage - 1) * size))

    def describe(self) -> str:
        """As in "stage=2,tensor=4"; "tensor=1" for a mesh of one."""
        parts = [f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return ",".join(parts) or "tensor=1"


MEGATRON_CUTS = Cuts()


def why_not(model: ModelShape, placement: Placement, cuts: Cuts = MEGATRON_CUTS) -> str | None:
    """What of the model's shape does not divide as the mesh asks, or None."""
    num_layers, left = divmod(model.num_layers, placement.stage)
    if left:
        return f"{model.num_layers} layers do not divide into stage={placement.stage}"
    kinds = [model.kind(layer) for layer in range(model.num_layers)]
    if any(kinds[layer] != kinds[layer % num_layers] for layer in range(model.num_layers)):
        return f"the {num_layers} layers of each of stage={placement.stage} are not alike"
    if placement.expert > 1 and not model.num_experts:
        return f"no experts to cut over expert={placement.expert}"
    num_kv_parts = placement.size(cuts.kv_heads)
    if model.num_kv_heads % num_kv_parts and num_kv_parts % model.num_kv_heads:
        return f"{model.num_kv_heads} KV heads neither divide into {num_kv_parts} devices nor can be repeated over them"
    sizes = [
        ("query heads", model.num_heads, cuts.heads),
        ("words of the vocabulary", model.vocab_size, cuts.vocab),
        ("experts", model.num_experts, cuts.expert),
        ("MLP columns", model.mlp_size, cuts.expert_mlp if model.num_experts else cuts.mlp),
        ("MLP columns", model.dense_mlp_size, cuts.mlp),
    ]
    for name, size, axes in sizes:
        if size % placement.size(axes):
            return f"{size} {name} do not divide into {placement.size(axes)} devices"
    return None
