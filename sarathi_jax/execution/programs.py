"""Compiling every program of an engine ahead of time, several at once, with a bar; and keeping them on disk for the next start."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from sarathi_jax import gpu_defaults
from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.buckets import Bucket, Variant, largest_first
from sarathi_jax.execution.compile_ledger import CompileLedger, watch_cache
from sarathi_jax.execution.device_state import (
    DeviceState,
    abstract_state,
    make_state,
    masks_sizes,
    set_masks,
    set_slot,
    slot_size,
)
from sarathi_jax.execution.packing import Geometry, packed_size
from sarathi_jax.execution.pipeline_program import make_pipeline_step
from sarathi_jax.execution.step_program import Forward, Step, make_forward, make_step
from sarathi_jax.group.facts import digest
from sarathi_jax.group.member import Group
from sarathi_jax.kernels.registry import Kernels
from sarathi_jax.sharding.model_state import ModelState

logger = logging.getLogger(__name__)

Compiled = Callable[..., Any]
MAX_COMPILE_THREADS = 8


@dataclass(frozen=True, slots=True)
class Programs:
    """The compiled programs. steps: by bucket. make_state: () -> DeviceState. set_slot: (slots, packed) -> slots. set_masks: by the length of packed, alike; empty where no
    step reads masks."""

    steps: dict[Bucket, Compiled]
    make_state: Compiled
    set_slot: Compiled
    set_masks: Mapping[int, Compiled] = field(default_factory=dict)


def _absent(*_: Any) -> Any:
    raise AssertionError("these programs run in other processes")


# Of a mesh whose devices are all other processes'.
NO_PROGRAMS = Programs({}, _absent, _absent)


@dataclass(frozen=True, slots=True)
class ProgramBuilder:
    """What the programs of one engine are compiled from."""

    model_state: ModelState
    geometry: Geometry
    kernels: Kernels
    kv_dtype: jnp.dtype
    ledger: CompileLedger
    _forwards: dict[tuple[int, int, bool], Forward] = field(default_factory=dict)
    # Tracing is Python, and so one thread's work at a time. One after the other they find what was traced for others.
    _tracing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self.model_state.mesh

    def compile_all(
        self, buckets: Sequence[Bucket], check: Callable[[], object] = lambda: None, *, progress: bool
    ) -> Programs:
        """Compile all programs. `check` is called before each, and stops it all by raising. Raises: what it and the compiler raise."""
        with (
            ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_COMPILE_THREADS), "compile") as pool,
            tqdm(total=len(buckets), desc="compile", unit="program", disable=not progress) as bar,
        ):

            def compile_step(bucket: Bucket) -> Compiled:
                check()
                compiled = self.compile_step(bucket)
                bar.update()
                return compiled

            # The largest first: the pool ends together.
            order = largest_first(buckets)
            helpers = pool.submit(self._compile_make_state), pool.submit(self._compile_set_slot)
            has_masks = any(bucket.variant is Variant.FULL for bucket in buckets)
            sizes = masks_sizes(self.geometry) if has_masks else {}
            masks = {size: pool.submit(self._compile_set_masks, size, count) for size, count in sizes.items()}
            steps = dict(zip(order, pool.map(compile_step, order), strict=True))
            set_masks = {size: program.result() for size, program in masks.items()}
            return Programs(steps, helpers[0].result(), helpers[1].result(), set_masks)

    def compile_step(self, bucket: Bucket, compiler_options: Mapping[str, Any] | None = None) -> Compiled:
        """Compile one bucket's step. compiler_options: XLA's, for this program alone."""
        state = self.abstract_state()
        num_stages = self.model_state.num_stages
        step = self._make_step(bucket) if num_stages == 1 else self._make_pipeline_step(bucket)
        packed = self._replicated(num_stages * packed_size(bucket, self.geometry.blocks_per_row))
        jitted = jax.jit(step, donate_argnums=1, out_shardings=(_shardings(state), packed.sharding))
        arguments = tuple(self.model_state.parameters.values()), state, packed
        return self._compile(bucket.name, (bucket.num_tokens, bucket.num_rows), jitted, arguments, compiler_options)

    def _make_step(self, bucket: Bucket) -> Step:
        shape = bucket.num_tokens, bucket.num_rows, bucket.is_decode_only
        if shape not in self._forwards:
            self._forwards[shape] = make_forward(self.model_state, bucket, self.geometry, self.kernels)
        return make_step(self.model_state, bucket, self.geometry, self.kernels, self._forwards[shape])

    def _make_pipeline_step(self, bucket: Bucket) -> Step:
        return make_pipeline_step(self.model_state, bucket, self.geometry, self.kernels)

    def abstract_state(self) -> DeviceState:
        """Shapes and shardings of the state that steps take and give back."""
        return abstract_state(self.model_state, self.geometry, self.kv_dtype)

    def _compile_make_state(self) -> Compiled:
        state = self.abstract_state()
        return self._compile(
            "make state", (0, 0), jax.jit(lambda: make_state(state), out_shardings=_shardings(state)), ()
        )

    def _compile_set_slot(self) -> Compiled:
        slots = self.abstract_state().slots
        jitted = jax.jit(set_slot, donate_argnums=0, out_shardings=_shardings(slots))
        return self._compile("set slot", (0, 0), jitted, (slots, self._replicated(slot_size(self.geometry))))

    def _compile_set_masks(self, size: int, count: int) -> Compiled:
        slots = self.abstract_state().slots
        jitted = jax.jit(set_masks, donate_argnums=0, out_shardings=_shardings(slots))
        return self._compile(f"set masks {count}", (0, count), jitted, (slots, self._replicated(size)))

    def _compile(
        self,
        name: str,
        shape: tuple[int, int],
        jitted: Any,
        arguments: tuple[Any, ...],
        compiler_options: Mapping[str, Any] | None = None,
    ) -> Compiled:
        started = time.perf_counter()
        options = {**gpu_defaults.compiler_options(self.mesh.devices.flat[0].platform), **(compiler_options or {})}
        with watch_cache() as is_cache_hit, jax.set_mesh(self.mesh):
            with self._tracing:
                traced = jitted.trace(*arguments)
            compiled = traced.lower().compile(options)
        memory = compiled.memory_analysis()
        temp_bytes = memory.temp_size_in_bytes if memory else 0
        seconds = time.perf_counter() - started
        self.ledger.record(name, shape, seconds, temp_bytes, is_cache_hit=is_cache_hit[0])
        return compiled

    def _replicated(self, size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size,), jnp.int32, sharding=NamedSharding(self.mesh, PartitionSpec()))


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda struct: struct.sharding, tree)


def use_compile_cache(folder: str | None) -> None:
    """Keep compiled programs in a folder that only its owner can read, since what is loaded from it is run.

    Args:
      folder: None is the user's cache folder, "" none at all. A cache that the process already has is left as it is.
    Raises: ConfigError if the folder can't be made, belongs to someone else, or was open to what others write.
    """
    if folder == "" or jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(folder) if folder else cache_home / "sarathi-jax" / "compiled"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.stat().st_uid != os.getuid():
            raise PermissionError("it belongs to another user")
        if path.stat().st_mode & 0o022:
            raise PermissionError("others can write to it")
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"compile_cache must be a folder of your own, got {path} ({error}): choose another, or pass ''."
        ) from error
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def agree_on_cache(group: Group) -> None:
    """Turn the folder of compiled programs off, for this process, unless all processes of a group have the same one.

    jax writes to it in process 0 alone. On GPUs processes tune a program together: one that finds it on disk leaves those that don't waiting. On a CPU there
    is nothing to tune, and each may take what it finds.
    """
    if jax.default_backend() == "cpu":
        return
    folder: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    paths = Path(folder).rglob("*") if folder else ()
    names = sorted(path.name for path in paths if not path.name.endswith("-atime"))
    if len({*group.exchange("compiled programs", digest("\n".join(names)))}) > 1:
        logger.warning("compiled programs are not kept: put compile_cache where all processes see it, to start faster")
        jax.config.update("jax_enable_compilation_cache", False)
