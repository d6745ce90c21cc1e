"""Shapes of the paper's models, its systems, and the published profiles and trace, where somebody has them."""

import csv
import os
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.flight_record import FlightRecord, read_record
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.loop import StepLoop
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.hardware import HostCost, load_device, load_host, load_system
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.pipelines import StagesInLockStep
from sarathi_jax.simulation.placement import Placement
from sarathi_jax.simulation.simulated_executor import SimulatedExecutor
from sarathi_jax.simulation.step_work import StepWork

ROOT = Path(__file__).parent.parent.parent
# Vidur's published profiles and Sarathi-Serve's trace; no part of this project.
DATA_FOLDERS = (ROOT / "shared" / "data", ROOT.parent / "shared" / "data")

MISTRAL_7B = ModelShape(
    num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, head_dim=128, mlp_size=14336, vocab_size=32000
)
YI_34B = ModelShape(
    num_layers=60, hidden_size=7168, num_heads=56, num_kv_heads=8, head_dim=128, mlp_size=20480, vocab_size=64000
)
FALCON_180B = ModelShape(
    num_layers=80,
    hidden_size=14848,
    num_heads=232,
    num_kv_heads=8,
    head_dim=64,
    mlp_size=59392,
    vocab_size=65024,
    num_mlp_matrices=2,
    num_all_reduces_per_layer=1,
)
MIXTRAL_8X7B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_size=14336,
    vocab_size=32000,
    num_experts=8,
    experts_per_token=2,
)
SHAPES = {
    "mistral-7b": MISTRAL_7B,
    "yi-34b": YI_34B,
    "falcon-180b": FALCON_180B,
    "mixtral-8x7b": MIXTRAL_8X7B,
}


@pytest.fixture(scope="session")
def shapes() -> dict[str, ModelShape]:
    """By name: the paper's dense models and one with experts."""
    return SHAPES


def data_folder(name: str) -> Path | None:
    """The folder `name` of the reference data, where somebody has it."""
    given = os.environ.get("SARATHI_JAX_DATA")
    folders = (Path(given),) if given else DATA_FOLDERS
    return next((each / name for each in folders if (each / name).is_dir()), None)


@pytest.fixture(scope="session")
def chat_trace_file() -> Path:
    """The published requests of openchat_sharegpt4. Skips where the file is not."""
    folder = data_folder("traces")
    if folder is None:
        # 30,731 requests that their authors publish, and that are not this project's to pass on. What is fitted to them is tested without them, against the paper's table.
        pytest.skip(
            "compares with its authors' published trace, which is no part of this project: point SARATHI_JAX_DATA at the folder that has traces/"
        )
    return folder / "openchat_sharegpt4_8k.csv"


@pytest.fixture(scope="session")
def chat_trace(chat_trace_file: Path) -> NDArray[np.int64]:
    """[2, n]: prompt and output tokens of each of them."""
    return np.loadtxt(chat_trace_file, np.int64, delimiter=",", skiprows=1, usecols=(0, 1)).T


@pytest.fixture(scope="session")
def read_profile() -> Callable[..., dict[float, float]]:
    """(file, key column, summed columns, {column: wanted}) -> key -> seconds, the median over repeated rows. Skips where the files are not."""
    folder = data_folder("profiles")

    def read(name: str, key: str, columns: tuple[str, ...], wanted: dict[str, int]) -> dict[float, float]:
        if folder is None:
            pytest.skip(
                "compares with Vidur's published profiles, which are no part of this project: point SARATHI_JAX_DATA at the folder that has profiles/"
            )
        rows = defaultdict(list)
        with (folder / name).open(newline="") as file:
            for row in csv.DictReader(file):
                if all(int(row[column]) == value for column, value in wanted.items()):
                    rows[float(row[key])].append(sum(float(row[f"time_stats.{each}.median"]) for each in columns) / 1e3)
        assert rows, "no such rows"
        return {size: median(times) for size, times in rows.items()}

    return read


@pytest.fixture(scope="session")
def cost_model() -> Callable[..., CostModel]:
    """A cost model, by names and sizes of the mesh; sends are split over a stage's devices, as in Sarathi-Serve's engine."""

    def make(model: str, device: str, system: str, host: str, **sizes: int) -> CostModel:
        placement = Placement(**sizes)
        links = Links(load_system(system))
        return CostModel(SHAPES[model], load_device(device), placement, links, load_host(host), has_split_sends=True)

    return make


@dataclass(frozen=True)
class TokenPrices(CostModel):
    """A cost model to count by hand: each stage takes so many seconds for each token of a step, and nothing else; and there is room for so many tokens."""

    token_s: tuple[float, ...] = (1.0,)
    num_kv_tokens: int = 4096

    def kv_tokens(self, memory_fraction: float, temp_bytes: int = 0) -> int:
        return self.num_kv_tokens

    def stages_s(self, work: StepWork) -> tuple[float, ...]:
        return tuple(each * work.num_tokens for each in self.token_s)


@pytest.fixture(scope="session")
def make_deployment() -> Callable[..., Deployment]:
    """(seconds a token of each stage, host seconds a step and a row, tokens of KV, fields of Deployment): steps of at most 4 tokens, the plain loop, unless
    told otherwise."""

    def make(
        *token_s: float, host_s: float = 0.0, row_s: float = 0.0, num_kv_tokens: int = 4096, **options: Any
    ) -> Deployment:
        prices = TokenPrices(
            MISTRAL_7B,
            load_device("a100-80g"),
            Placement(num_hosts=1, gpus_per_host=len(token_s), stage=len(token_s)),
            Links(load_system("dgx-a100")),
            HostCost("by hand", host_s, row_s, is_overlapped=False),
            token_s=token_s,
            num_kv_tokens=num_kv_tokens,
        )
        defaults = {"max_model_len": 64, "token_budget": 4, "max_num_seqs": 4, "is_overlapped": False}
        return Deployment(cost_model=prices, **{**defaults, **options})

    return make


class NoHost:
    """A host whose part of each step is the same."""

    def seconds(self, num_rows: int) -> float:
        del num_rows
        return 1e-4


type Pricing = Callable[[Any], list[float]]
type MakeRequest = Callable[[int, float], Request]
type RecordRun = Callable[[Scheduler, random.Random, int, MakeRequest, Pricing], FlightRecord]


@pytest.fixture
def record_run(tmp_path: Path) -> RecordRun:
    """Runs so many requests, each made of its number and its arrival, in bursts on a virtual clock, and reads what was recorded."""

    def run(
        scheduler: Scheduler, rng: random.Random, num_requests: int, make: MakeRequest, prices: Pricing
    ) -> FlightRecord:
        clock, host = VirtualClock(), cast("Any", NoHost())
        executor = SimulatedExecutor(clock, prices, host, StagesInLockStep(1))
        loop = StepLoop(scheduler, executor, clock, is_overlapped=True)
        recorder = loop.recorder = FlightRecorder(scheduler, clock, max_events=10**6, is_overlapped=True)
        for number in range(num_requests):
            recorder.arrived(scheduler.add(make(number, clock.now())))
            for _ in range(rng.choice([0, 0, 1, 5, 20])):
                if not loop.is_idle:
                    loop.step()
        while not loop.is_idle:
            loop.step()
        assert recorder.fault is None
        recorder.dump(tmp_path / "flight.jsonl.gz")
        return read_record(tmp_path / "flight.jsonl.gz")

    return run
