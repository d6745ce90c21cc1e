"""The parent's side of a peer: its process, its answers, and how much of the machine others took meanwhile. Linux only."""

import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.load import Answer, Order, Request

ROOT = Path(__file__).parents[2]
SETTINGS = {
    # vLLM reads these as it is imported. GB of keys and values; threads as OpenMP places them; the engine in the process that asked for it.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True)
class Turn:
    """others: share of the machine's processors that went to processes which are not this peer's."""

    answers: list[Answer]
    others: float


class Child:
    """A peer that has started. Raises: RuntimeError, with the end of what it wrote, if it has not."""

    def __init__(self, interpreter: str, module: str, order: Order) -> None:
        self._name = f"{interpreter} -m benchmarks.peers.{module}"
        self._errors = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115 (it lives as long as the child)
        self._process = subprocess.Popen(
            [interpreter, "-m", f"benchmarks.peers.{module}", json.dumps(asdict(order))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **SETTINGS, "OMP_NUM_THREADS": str(order.num_threads), "PYTHONPATH": str(ROOT)},
        )
        try:
            self.versions: dict[str, str] = self._answer()
        except RuntimeError:
            self.close()
            raise

    def take_turn(self, requests: list[Request]) -> Turn:
        """Play a load. Raises: RuntimeError if the child has ended."""
        assert self._process.stdin is not None
        before, started_s = self._busy_s(), time.perf_counter()
        self._process.stdin.write(json.dumps([asdict(each) for each in requests]) + "\n")
        self._process.stdin.flush()
        answers = [Answer(**each) for each in self._answer()]
        after, seconds = self._busy_s(), time.perf_counter() - started_s
        return Turn(answers, max(0.0, after - before) / (seconds * (os.cpu_count() or 1)))

    def close(self) -> None:
        """End it, as its orders end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(timeout=120)
            self._errors.seek(0)
            raise RuntimeError(f"{self._name} ended:\n{self._errors.read()[-2000:]}")
        return json.loads(line)

    def _busy_s(self) -> float:
        """Processor seconds since the machine's start of everything but the child and its own children."""
        ticks = os.sysconf("SC_CLK_TCK")
        user, nice, system, _idle, _wait, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
        own = sum(_ticks_of(pid) for pid in _tree(self._process.pid))
        return (user + nice + system + irq + soft - own) / ticks


def _tree(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for each in found:
        for path in Path(f"/proc/{each}/task").glob("*/children"):
            with suppress(FileNotFoundError):  # of a thread that has ended
                found += map(int, path.read_text().split())
    return found


def _ticks_of(pid: int) -> int:
    """User's and system's, of all its threads."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
