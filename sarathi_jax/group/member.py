"""A process of a group, as the others know it; and what each process of a group can do, whether it leads or follows."""

import os
import socket
from typing import Any, NamedTuple, Protocol

from sarathi_jax.errors import ConfigError
from sarathi_jax.group.loss import Loss

BEAT_S = 0.5
# Silence of a process that serves; named in under 5 s. Followers wait longer for the leader, who may be about to tell them of another one.
LEADER_PATIENCE_S, FOLLOWER_PATIENCE_S = 3.0, 4.0
# Until then weights are read and programs compiled, which may hold up a process's other threads.
START_PATIENCE_S = 60.0
START_LIMIT_S = 300.0
STEP_LIMIT_S = 120.0


class Member(NamedTuple):
    """Which process, and where it runs."""

    process_id: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.process_id} (host {self.host}, pid {self.pid})"


class Group(Protocol):
    """One process's hold on its group."""

    members: list[Member]
    me: Member
    loss: Loss

    def exchange(self, topic: str, value: Any) -> list[Any]:
        """Give every process a value that JSON can hold, and get everybody's, by process id. All must call it, in the same order. Raises: GroupError."""
        ...


def this_process(process_id: int) -> Member:
    return Member(process_id, socket.gethostname(), os.getpid())


def check_same(group: Group, topic: str, facts: dict[str, str]) -> None:
    """Check that all processes have the same facts. Raises: ConfigError in every process, naming what differs and where."""
    everybodys = group.exchange(topic, facts)
    for member, theirs in zip(group.members, everybodys, strict=True):
        for name in sorted({*everybodys[0], *theirs}):
            ours, other = everybodys[0].get(name), theirs.get(name)
            if ours != other:
                raise ConfigError(
                    f"Every process of a group must have the same {name}, got {ours} in {group.members[0]} and {other} in {member}: start them alike."
                )
