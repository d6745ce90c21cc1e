"""A program's collectives as traffic: along which axes of the mesh, over which links, how often, and what they take there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sarathi_jax.lab.collectives import Collective, axes_of
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.placement import Group, group_of

PERMUTE = "collective-permute"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Collectives that are alike.

    axes: of the mesh; None: groups that are no cut of it. num_bytes: of each one's message (`Collective.num_bytes`). count: of those in a loop once each.
    num_hosts: that one group reaches over. seconds: of each, predicted.
    """

    kind: str
    axes: tuple[str, ...] | None
    num_bytes: int
    count: int
    is_in_loop: bool
    num_hosts: int
    seconds: float

    @property
    def total_s(self) -> float:
        return self.count * self.seconds


def traffic_of(
    collectives: Sequence[Collective], mesh: Mapping[str, int], links: Links, gpus_per_host: int
) -> tuple[Traffic, ...]:
    """All of a program's traffic, what takes longest first. mesh: axis -> size, whose devices lie host by host in its order."""
    counts, first = Counter[tuple[object, ...]](), dict[tuple[object, ...], Collective]()
    for each in collectives:
        key = (each.kind, axes_of(each, mesh), each.num_bytes, each.is_in_loop)
        counts[key] += each.count
        first.setdefault(key, each)
    found = [_traffic(first[key], counts[key], mesh, links, gpus_per_host) for key in counts]
    return tuple(sorted(found, key=lambda traffic: traffic.total_s, reverse=True))


def _traffic(collective: Collective, count: int, mesh: Mapping[str, int], links: Links, gpus_per_host: int) -> Traffic:
    if collective.kind == PERMUTE:
        num_hosts, seconds = _sends(collective, links, gpus_per_host)
    else:
        group = _widest(collective, gpus_per_host)
        num_hosts, seconds = group.num_hosts, links.collective_s(collective.kind, collective.num_bytes, group)
    axes = axes_of(collective, mesh)
    return Traffic(collective.kind, axes, collective.num_bytes, count, collective.is_in_loop, num_hosts, seconds)


def _widest(collective: Collective, gpus_per_host: int) -> Group:
    """The group that reaches over most hosts, with all that cross a host's network at the same time as its rivals."""
    crossing = Counter[int]()
    for devices in collective.groups:
        hosts = {device // gpus_per_host for device in devices}
        crossing.update(hosts if len(hosts) > 1 else ())
    num_rivals = max(crossing.values(), default=1)
    groups = (group_of(devices, gpus_per_host, num_rivals) for devices in collective.groups)
    return max(groups, key=lambda group: (group.num_hosts, group.span))


def _sends(collective: Collective, links: Links, gpus_per_host: int) -> tuple[int, float]:
    """Hosts that a pair reaches over, and seconds until the last pair is done."""
    leaving = Counter(
        sender // gpus_per_host
        for sender, receiver in collective.groups
        if sender // gpus_per_host != receiver // gpus_per_host
    )
    is_remote = bool(leaving)
    num_pairs = max(leaving.values(), default=1)
    return 1 + is_remote, links.send_s(collective.num_bytes, is_remote=is_remote, num_pairs=num_pairs)
