"""A model's whole step compiled for GPUs that need not be there, and what that tells: memory, copies, collectives and their time, and what goes into a CUDA graph."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp

from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.buckets import Bucket
from sarathi_jax.execution.compile_ledger import CompileLedger
from sarathi_jax.execution.device_state import kv_bytes_per_page
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.execution.programs import ProgramBuilder
from sarathi_jax.kernels import registry
from sarathi_jax.kernels.gpu import gpu_target
from sarathi_jax.lab.collectives import read_collectives
from sarathi_jax.lab.hlo import count_copies, count_sliced_calls, kernel_calls
from sarathi_jax.lab.traffic import Traffic, traffic_of
from sarathi_jax.models import ModelConfig
from sarathi_jax.sharding.model_state import ModelState, abstract_model
from sarathi_jax.sharding.rules import MEGATRON, Rules
from sarathi_jax.simulation.links import Links

KV_SHARE = 0.9  # of the memory that weights leave
# A CPU adds up 16-bit numbers in 32 bits, which would double the bytes of collectives; and over stages, the pass that sees to it ends the process.
STAND_IN_OPTIONS = {"xla_disable_hlo_passes": "all-reduce-promotion"}
_TOP_LEVEL_THUNK = re.compile(r"^\d+: (k\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step program, per device. Bytes, and counts of instructions.

    num_kv_tokens: that it was compiled for, kv_token_bytes each.
    state_bytes: of what is donated; alias_bytes: of what of it is updated in place. num_page_copies, num_weight_copies: new arrays as large as a layer's KV pages, or as a
    weight of the model. collectives: kind -> count. traffic: the same, told apart, and what they take. flop, hbm_bytes: by the compiler's own count; None where it has none, as for GPUs that are not there. num_sliced_calls: kernels that read a slice of an argument in place. num_graphs: CUDA graphs that the step is cut into; outside_graphs: kind of operation -> how many run outside of them.
    """

    bucket: str
    num_kv_tokens: int
    kv_token_bytes: int
    weight_bytes: int
    state_bytes: int
    alias_bytes: int
    temp_bytes: int
    logits_bytes: int
    num_page_copies: int
    num_weight_copies: int
    num_kernel_calls: int
    num_sliced_calls: int
    num_host_arrays: int
    collectives: dict[str, int]
    traffic: tuple[Traffic, ...]
    flop: float | None
    hbm_bytes: float | None
    num_graphs: int
    outside_graphs: dict[str, int]

    @property
    def talk_s(self) -> float:
        """Of all collectives, one after the other."""
        return sum(each.total_s for each in self.traffic)


def report_step(
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    memory_bytes: int,
    bucket: Bucket,
    *,
    links: Links,
    gpus_per_host: int,
    page_size: int,
    dtype: str,
    kv_dtype: str,
    rules: Rules = MEGATRON,
) -> StepReport:
    """Compile one bucket's step and read it.

    Args:
      mesh: of described GPUs, host by host; or of the host's CPU devices, whose compiler does other things, and has no CUDA graphs.
      memory_bytes: of one of them, which the KV pages nearly fill: what is compiled is what would run.
      links, gpus_per_host: what collectives are priced by.
      rules: how the model is cut.
    Raises: ConfigError if the weights don't leave room for one request of the greatest length.
    """
    state = abstract_model(config, jnp.dtype(dtype), mesh, rules)
    page_bytes = kv_bytes_per_page(state.config, page_size, kv_dtype, state.num_kv_parts)
    geometry = _filled(state, memory_bytes, page_bytes, bucket, page_size)
    use = registry.use_on(mesh.devices.flat[0], kv_dtype, config.head_dim)
    builder = ProgramBuilder(state, geometry, registry.choose_kernels(use), jnp.dtype(kv_dtype), CompileLedger())
    is_gpu = gpu_target(mesh.devices.flat[0]) is not None
    with TemporaryDirectory() as dump:
        compiled: Any = builder.compile_step(bucket, {"xla_dump_to": dump} if is_gpu else STAND_IN_OPTIONS)
        thunks = read_thunks(Path(dump)) if is_gpu else Counter[str]()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    collectives, cost = read_collectives(text, mesh.size), compiled.cost_analysis() or {}
    donated = jax.tree.leaves(builder.abstract_state())
    pages, weights = builder.abstract_state().layers[0].arrays, state.parameters.values()
    return StepReport(
        bucket=bucket.name,
        num_kv_tokens=geometry.num_slots,
        kv_token_bytes=page_bytes // page_size,
        weight_bytes=state.num_bytes,
        state_bytes=sum(math.prod(_shard_shape(each)) * each.dtype.itemsize for each in donated),
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        logits_bytes=bucket.num_rows * config.vocab_size * 4,
        num_page_copies=count_copies(text, _shard_shapes(pages)),
        num_weight_copies=count_copies(
            text, {each for each in _shard_shapes(weights) if math.prod(each) > config.hidden_size}
        ),
        num_kernel_calls=kernel_calls(text)["triton_kernel_call_ffi"],
        num_sliced_calls=count_sliced_calls(text),
        num_host_arrays=len(jax.tree.leaves(compiled.in_avals)) - len(state.parameters) - len(donated),
        collectives=dict(sum((Counter({each.kind: each.count}) for each in collectives), Counter())),
        traffic=traffic_of(collectives, dict(mesh.shape), links, gpus_per_host),
        flop=cost.get("flops"),
        hbm_bytes=cost.get("bytes accessed"),
        num_graphs=thunks["kCommandBuffer"],
        outside_graphs={kind: count for kind, count in thunks.items() if kind != "kCommandBuffer"},
    )


def _filled(state: ModelState, memory_bytes: int, page_bytes: int, bucket: Bucket, page_size: int) -> Geometry:
    """The geometry whose KV pages nearly fill what the weights leave."""
    config, num_pages = state.config, int((memory_bytes - state.num_bytes) * KV_SHARE) // page_bytes
    blocks_per_row = math.ceil(config.max_position_embeddings / page_size)
    if num_pages < blocks_per_row:
        raise ConfigError(
            f"Weights of {state.num_bytes / 2**30:.1f} GiB a device must leave room for {blocks_per_row} KV pages, got"
            f" {memory_bytes / 2**30:.1f} GiB: choose a larger mesh."
        )
    return Geometry(
        num_pages,
        page_size,
        blocks_per_row,
        bucket.num_rows,
        config.max_position_embeddings,
        config.vocab_size,
        bucket.num_tokens,
    )


def read_thunks(dump: Path) -> Counter[str]:
    """What the step's sequence consists of, at its top: kind -> count, from the compiler's dump."""
    (path,) = dump.glob("*jit_step*.thunk_sequence_after_thunk_passes.txt")
    return Counter(_TOP_LEVEL_THUNK.findall(path.read_text(encoding="utf-8")))


def _shard_shapes(arrays: Any) -> set[tuple[int, ...]]:
    return {_shard_shape(array) for array in arrays}


def _shard_shape(array: Any) -> tuple[int, ...]:
    return tuple(array.sharding.shard_shape(array.shape))
