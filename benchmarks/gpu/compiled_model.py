"""A model with random weights and just the step programs that a part asks for, compiled as the engine compiles them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.arithmetic import weight_bytes_read
from sarathi_jax.checkpoints.loader import dummy_params
from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.clock import WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.executor import Executor
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant
from sarathi_jax.execution.build import EnginePrograms, choose_dtype, compile_engine
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """Programs and parameters. device: the one that they are on."""

    config: ModelConfig
    programs: EnginePrograms
    params: Sequence[jax.Array]
    device: Any

    @property
    def weight_bytes_read(self) -> int:
        """Weights that every step reads."""
        parameters = self.programs.model_state.parameters.items()
        num_bytes = {path: struct.size * struct.dtype.itemsize for path, struct in parameters}
        return weight_bytes_read(num_bytes, is_head_tied=self.config.is_head_tied)


def compile_model(
    config: EngineConfig,
    is_wanted: Callable[[Bucket], bool] = lambda bucket: True,
    variants: tuple[Variant, ...] = (Variant.GREEDY,),
) -> CompiledModel:
    """Compile the programs of these variants that are wanted, and make the weights. Raises: ConfigError, CapacityError."""
    source = find_model(config.model, is_dummy=True)
    mesh = make_mesh({})
    state = abstract_model(source.config, choose_dtype(config.dtype, source.config, mesh), mesh, MEGATRON)
    table = BucketTable(config.step_tokens, config.max_num_seqs, variants=variants)
    table.buckets = tuple(bucket for bucket in table.buckets if is_wanted(bucket))
    params = state.flat(dummy_params(state.parameters, config.seed))
    programs = compile_engine(state, config, table, progress=False)
    programs.ledger.mark_ready()
    return CompiledModel(source.config, programs, params, mesh.devices.flat[0])


def make_engine(
    compiled: CompiledModel, executor: Executor, config: EngineConfig, *, policy: str = "sarathi", token_budget: int = 0
) -> Engine:
    """An engine over what is compiled, with queues of its own. token_budget: at most that of the programs; 0: that one."""
    geometry = compiled.programs.geometry
    scheduler = Scheduler(
        make_policy(policy),
        num_pages=geometry.num_pages,
        page_size=geometry.page_size,
        token_budget=token_budget or config.step_tokens,
        max_num_seqs=geometry.max_num_seqs,
        max_model_len=geometry.max_model_len,
        vocab_size=geometry.vocab_size,
    )
    return Engine(scheduler, executor, WallClock(), is_overlapped=config.overlap, tokenizer=None)


def kv_itemsize(state: Any) -> int:
    """Bytes of one number in the cache of a device state."""
    return jnp.dtype(state.layers[0].k.dtype).itemsize
