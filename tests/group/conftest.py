"""Groups whose processes are threads of this one: process 0's hold, the followers' holds, and what the followers' losses were."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from sarathi_jax.errors import GroupError
from sarathi_jax.group.admission import admit, join
from sarathi_jax.group.follower import Follower
from sarathi_jax.group.launch import free_port
from sarathi_jax.group.leader import Leader
from sarathi_jax.group.place import LOOPBACK, Place

KEY = b"a key that both sides have"


@dataclass
class Rig:
    """A group in one process."""

    leader: Leader
    followers: list[Follower]
    losses: list[GroupError] = field(default_factory=list)


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Number of processes -> a group; options are the leader's, and patience_s the followers' too."""
    rigs: list[Rig] = []

    def make(num_processes: int, **options: Any) -> Rig:
        place = Place(num_processes, 0, LOOPBACK, free_port())
        losses: list[GroupError] = []
        followers: dict[int, Follower] = {}
        patience = {name: value for name, value in options.items() if name == "patience_s"}

        def follow(process_id: int) -> None:
            admitted = join(Place(num_processes, process_id, LOOPBACK, place.port), KEY)
            followers[process_id] = Follower(admitted, process_id, on_loss=losses.append, **patience)

        threads = [threading.Thread(target=follow, args=(each,)) for each in range(1, num_processes)]
        for thread in threads:
            thread.start()
        leader = Leader(admit(place, KEY), **options)
        for thread in threads:
            thread.join()
        rigs.append(Rig(leader, [followers[each] for each in sorted(followers)], losses))
        return rigs[-1]

    yield make
    for rig in rigs:  # whoever still waits is let go
        rig.leader._is_over.set()
        rig.leader.fail(RuntimeError("the test is over"))
        for follower in rig.followers:
            follower._is_over.set()
            follower.fail(RuntimeError("the test is over"))
            follower._link.shut()
