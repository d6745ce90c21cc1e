"""Starting a group's other processes on this machine: for trying a group out, and for hosts where a process a GPU is wanted."""

import contextlib
import dataclasses
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError, GroupError
from sarathi_jax.group.key import KEY, KEY_FILE
from sarathi_jax.group.place import LOOPBACK, Place

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")
# A pair of free ports is looked for here: below those that outgoing connections get.
PORTS = range(20000, 30000, 2)
END_LIMIT_S = 15.0


@dataclass(frozen=True)
class Launched:
    """place: this process's, with the port that was chosen. local_devices: this process's share of the GPUs, by number; None: no GPUs.
    processes: the others, from process 1 on."""

    place: Place
    key: bytes
    local_devices: list[int] | None
    processes: list[subprocess.Popen[bytes]]

    def check(self) -> None:
        """Raises: GroupError if one has ended."""
        for process_id, process in enumerate(self.processes, 1):
            if (code := process.poll()) is not None:
                raise GroupError(
                    f"Process {process_id}, which was started here, must join the group, got its end with code {code}: what it said stands above."
                )

    def end(self, limit_s: float = END_LIMIT_S) -> None:
        """Wait for them, and kill those that don't end."""
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limit_s)
            process.kill()
            process.wait()


def launch(config: EngineConfig, place: Place, environ: Mapping[str, str] = os.environ) -> Launched:
    """Start processes 1, 2, ... with the options of this one, a key made up for them, and their share of the GPUs. Raises: ConfigError if GPUs don't divide."""
    key = secrets.token_hex(32)
    placed = dataclasses.replace(place, port=free_port())
    shares = gpu_shares(place.num_processes, environ)
    processes = []
    for process_id in range(1, place.num_processes):
        own = dataclasses.replace(config, process_id=process_id, coordinator=f"{LOOPBACK}:{placed.port}")
        env = {name: value for name, value in environ.items() if name != KEY_FILE} | {KEY: key}
        env |= {VISIBLE_GPUS: ",".join(shares[process_id])} if shares else {}
        command = [sys.executable, "-m", "sarathi_jax.cli.main", "follow", *flags(own)]
        # A session of its own: Ctrl-C in a terminal is for the leader, who ends the others. What they print is for people.
        processes.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True))
    return Launched(placed, key.encode(), list(range(len(shares[0]))) if shares else None, processes)


def gpu_shares(num_processes: int, environ: Mapping[str, str]) -> list[list[str]]:
    """Each process's GPUs, as CUDA_VISIBLE_DEVICES names them; empty on a machine without any."""
    if VISIBLE_GPUS in environ:
        gpus = [name for name in environ[VISIBLE_GPUS].split(",") if name]
    else:
        gpus = [str(index) for index, _ in enumerate(GPU_FOLDER.iterdir())] if GPU_FOLDER.is_dir() else []
    share, rest = divmod(len(gpus), num_processes)
    if rest:
        raise ConfigError(
            f"num_processes={num_processes} must divide this machine's GPUs, got {len(gpus)}: choose another number, or set {VISIBLE_GPUS}."
        )
    return [gpus[each * share : (each + 1) * share] for each in range(num_processes)] if gpus else []


def flags(config: EngineConfig) -> list[str]:
    """The words of a command line that give this config: those fields that are not at their defaults. Raises: ConfigError if no words can."""

    def words() -> Iterator[str]:
        for field in dataclasses.fields(config):
            value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
            if value == field.default:
                continue
            if isinstance(value, Mapping):
                raise ConfigError(
                    f"{field.name} must be a name or a file where other processes are started, got a table from Python: write it into a .toml file, or"
                    " start each process yourself."
                )
            if isinstance(value, bool):
                yield flag if value else f"--no-{flag[2:]}"
            else:
                yield f"{flag}={'none' if value is None else value}"

    return list(words())


def free_port() -> int:
    """A port that is free now, as is the next one."""
    start = secrets.randbelow(len(PORTS))
    for port in (*PORTS[start:], *PORTS[:start]):
        if _is_free(port) and _is_free(port + 1):
            return port
    raise ConfigError(f"A group needs two free ports, got none between {PORTS.start} and {PORTS.stop}: free some.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
