"""Where a model's parts go: the sizes of a mesh's axes over hosts and their GPUs, and which of them talk to each other.

Devices are numbered host by host, and mesh axes are in the order data, stage, expert, tensor: neighbours in `tensor` are neighbours in a host.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.model_shape import ModelShape

AXES = ("data", "stage", "expert", "tensor")


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
        """What attention, vocabulary and a dense MLP are cut over: expert x tensor."""
        return self.expert * self.tensor

    @property
    def devices_per_replica(self) -> int:
        return self.stage * self.devices_per_stage

    @property
    def stage_group(self) -> Group:
        """Of the all-reduces of a stage: the one that reaches over most hosts."""
        size = self.devices_per_stage
        starts = range(0, self.stage * size, size)
        groups = [group_of(range(start, start + size), self.gpus_per_host) for start in starts]
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


def why_not(model: ModelShape, placement: Placement) -> str | None:
    """What of the model's shape does not divide as the mesh asks, or None."""
    cut = placement.devices_per_stage
    if model.num_layers % placement.stage:
        return f"{model.num_layers} layers do not divide into stage={placement.stage}"
    if placement.expert > 1 and (not model.num_experts or model.num_experts % placement.expert):
        return f"{model.num_experts or 'no'} experts do not divide into expert={placement.expert}"
    if model.num_kv_heads % cut and cut % model.num_kv_heads:
        return f"{model.num_kv_heads} KV heads neither divide into {cut} devices nor can be repeated over them"
    mlp_cut = placement.tensor if model.num_experts else cut
    sizes = (
        ("query heads", model.num_heads, cut),
        ("MLP columns", model.mlp_size, mlp_cut),
        ("vocabulary", model.vocab_size, cut),
    )
    for name, size, num_parts in sizes:
        if size % num_parts:
            return (
                f"{size} {name} do not divide into {num_parts} devices"
                if name != "vocabulary"
                else f"a vocabulary of {size} does not divide into {num_parts} devices"
            )
    return None
