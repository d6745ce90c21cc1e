"""Where a process stands in its group: how many there are, which one it is, and where the first one listens. From the options, and from what Slurm or
Kubernetes say of it, if the options ask for that."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sarathi_jax.config import AUTO_COORDINATOR, EngineConfig
from sarathi_jax.errors import ConfigError

LOOPBACK = "127.0.0.1"
KUBERNETES_PORT = 7700
# Above the ports that Linux gives to outgoing connections; two a job, so that jobs on one node don't meet.
FIRST_SLURM_PORT, NUM_SLURM_PORTS = 61000, 2200
FIRST_NODE = re.compile(r"([^,\[]+)(?:\[([^,\-\]]+))?")
INDEXED_POD = re.compile(r"(.+)-\d+\.(.+)")


@dataclass(frozen=True, slots=True)
class Place:
    """One process's place. host, port: where process 0 listens for the others; jax's own coordinator is at the next port.

    is_launcher: process 0 starts the others itself, on this machine, and chooses the port.
    """

    num_processes: int
    process_id: int
    host: str
    port: int
    is_launcher: bool = False

    @property
    def is_leader(self) -> bool:
        return self.process_id == 0

    @property
    def jax_port(self) -> int:
        return self.port + 1


class Surroundings(NamedTuple):
    """What a scheduler's environment variables say; None: nothing. name: the scheduler's."""

    name: str
    num_processes: int | None = None
    process_id: int | None = None
    host: str | None = None
    port: int | None = None


def find_place(config: EngineConfig, environ: Mapping[str, str] = os.environ, fqdn: str | None = None) -> Place | None:
    """This process's place; None: it is alone.

    Args:
      fqdn: this host's full name; None: asked of the system.
    Raises: ConfigError if the options don't say enough, or contradict each other.
    """
    if config.coordinator is None:
        if config.process_id is not None:
            raise ConfigError(
                f"process_id={config.process_id} needs a coordinator, got none: pass --coordinator HOST:PORT of process 0, the same to every process."
            )
        if config.num_processes in (None, 1):
            return None
        return Place(config.num_processes, 0, LOOPBACK, 0, is_launcher=True)
    found = surroundings(environ, fqdn)
    if config.coordinator == AUTO_COORDINATOR:
        host, port = _require("the coordinator", found.host, found.name, "--coordinator HOST:PORT"), found.port
    else:
        host, _, digits = config.coordinator.rpartition(":")
        host, port = host.strip("[]"), int(digits)
    num_processes = _chosen(config.num_processes, found.num_processes)
    process_id = _chosen(config.process_id, found.process_id)
    num_processes = _require("num_processes", num_processes, found.name, "--num-processes")
    process_id = _require("process_id", process_id, found.name, "--process-id")
    if process_id >= num_processes:
        raise ConfigError(
            f"process_id={process_id} must be below num_processes={num_processes}: processes are numbered from 0."
        )
    return None if num_processes == 1 else Place(num_processes, process_id, host, port or KUBERNETES_PORT)


def surroundings(environ: Mapping[str, str], fqdn: str | None = None) -> Surroundings:
    """What Slurm's `srun`, a Kubernetes LeaderWorkerSet or an indexed Kubernetes Job says of this process."""
    if "SLURM_PROCID" in environ:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
        first = FIRST_NODE.match(nodes)
        return Surroundings(
            "Slurm",
            _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
            _number(environ, "SLURM_PROCID"),
            "".join(part or "" for part in first.groups()) if first else None,
            FIRST_SLURM_PORT + 2 * ((_number(environ, "SLURM_JOB_ID") or 0) % NUM_SLURM_PORTS),
        )
    if "LWS_LEADER_ADDRESS" in environ:
        size, index = _number(environ, "LWS_GROUP_SIZE"), _number(environ, "LWS_WORKER_INDEX")
        return Surroundings("a LeaderWorkerSet", size, index, environ["LWS_LEADER_ADDRESS"], KUBERNETES_PORT)
    if "JOB_COMPLETION_INDEX" in environ:
        # The pods of an indexed Job are NAME-0, NAME-1, ... under the domain of its headless service.
        pod = INDEXED_POD.fullmatch(fqdn or socket.getfqdn())
        host = f"{pod[1]}-0.{pod[2]}" if pod else None
        return Surroundings("a Kubernetes Job", None, _number(environ, "JOB_COMPLETION_INDEX"), host, KUBERNETES_PORT)
    return Surroundings("neither Slurm nor Kubernetes")


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    return next((int(environ[name]) for name in names if environ.get(name, "").isdigit()), None)


def _chosen(given: int | None, found: int | None) -> int | None:
    return found if given is None else given


def _require[T](what: str, value: T | None, found_in: str, option: str) -> T:
    if value is None:
        raise ConfigError(
            f"A group needs {what}, got none from the options, and {found_in} in the environment: pass {option}."
        )
    return value
