"""Golden models as Hugging Face folders, written from the golden files' weights."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sarathi_jax.checkpoints.loader import load_params
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.engine import Engine
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant
from sarathi_jax.execution.compile_ledger import CompileLedger
from sarathi_jax.execution.device_runner import LocalRunner
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.execution.programs import ProgramBuilder
from sarathi_jax.kernels import registry
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON

DATA = Path(__file__).parent / "data"
SHARED_LIMITS = ("num_pages", "page_size", "max_num_seqs", "max_model_len", "vocab_size")


@dataclass(frozen=True)
class Golden:
    """What transformers computed for one model: `arrays` as generate.py names them, by prompt length."""

    folder: Path
    arrays: dict[str, np.ndarray]

    def lengths(self, kind: str) -> list[str]:
        """Prompts that have this kind of answer ("logits", "greedy")."""
        return [name.split("/")[1] for name in self.arrays if name.startswith(kind + "/")]

    def sequence(self, length: str) -> np.ndarray:
        """i32: a prompt, and its 64 greedy tokens if it has them."""
        return np.concatenate([self.arrays[f"prompt/{length}"], self.arrays.get(f"greedy/{length}", [])]).astype(
            np.int32
        )


@pytest.fixture(scope="session")
def make_golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Golden]:
    """Name of a tiny configuration -> its golden file and a model folder with its weights."""

    def make(name: str) -> Golden:
        with np.load(DATA / name / "golden.npz") as file:
            arrays = dict(file)
        weights = {key.removeprefix("weight/"): arrays.pop(key) for key in list(arrays) if key.startswith("weight/")}
        scale, folder = arrays.pop("weight_scale"), tmp_path_factory.mktemp(name)
        save_file(
            {key: value.astype(np.float32) * scale for key, value in weights.items()}, folder / "model.safetensors"
        )
        (folder / "config.json").write_text((DATA / name / "config.json").read_text())
        return Golden(folder, arrays)

    return make


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """(model folder, devices by mesh axis) -> an engine for two greedy requests, overlapped, with the two programs that these need.

    Vocabularies are too odd for any mesh, and stay whole.
    """
    engines = []

    def make(folder: Path, shape: Mapping[str, int] | None = None) -> Engine:
        config, mesh, dtype = read_model_config(folder), make_mesh(shape or {}), jnp.dtype("float32")
        state = abstract_model(config, dtype, mesh, {**MEGATRON, "vocab": None})
        max_model_len = min(config.max_position_embeddings, 136)
        table = BucketTable(16, 2)
        table.buckets = (Bucket(2, 2, True, Variant.GREEDY), Bucket(16, 2, False, Variant.GREEDY))
        geometry = Geometry(70, 4, max_model_len // 4, 2, max_model_len, config.vocab_size, 16)
        kernels = registry.choose_kernels(registry.use_on(mesh.devices.flat[0], dtype, config.head_dim))
        builder = ProgramBuilder(state, geometry, kernels, dtype, CompileLedger())
        programs, params = (
            builder.compile_all(table.buckets, progress=False),
            load_params(folder, config, state.parameters, state.layout),
        )
        runner, num_stages = LocalRunner(programs, state.flat(params)), state.num_stages
        executor = JaxExecutor(runner, table, geometry, config.eos_token_ids, num_stages)
        limits = {name: getattr(geometry, name) for name in SHARED_LIMITS}
        scheduler = Scheduler("sarathi", token_budget=16, num_microbatches=num_stages, **limits)
        engines.append(Engine(scheduler, executor, VirtualClock(), is_overlapped=True, tokenizer=None))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
