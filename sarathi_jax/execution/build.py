"""From a model and the engine's options to what runs it: memory plan, weights and programs, the last two side by side."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import CapacityError, ConfigError
from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.execution.compile_ledger import CompileLedger
from sarathi_jax.execution.device_runner import LocalRunner, Runner
from sarathi_jax.execution.device_state import kv_bytes_per_page
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.memory_plan import MemoryPlan, device_limit_bytes, plan_memory
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.execution.programs import NO_PROGRAMS, ProgramBuilder, Programs, use_compile_cache
from sarathi_jax.group.facts import digest
from sarathi_jax.group.member import Group, check_same
from sarathi_jax.kernels import registry
from sarathi_jax.models import ModelConfig
from sarathi_jax.sharding.mesh import is_here
from sarathi_jax.sharding.model_state import ModelState
from sarathi_jax.sharding.rules import num_parts

# Memory is planned before the programs tell what they need; when they need more, it is planned again.
MAX_PLANS = 3
TEMP_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class EnginePrograms:
    """Everything that is compiled for an engine, and what it was planned from."""

    programs: Programs
    table: BucketTable
    geometry: Geometry
    plan: MemoryPlan
    ledger: CompileLedger
    model_state: ModelState

    def executor(self, params: Sequence[jax.Array]) -> JaxExecutor:
        """An executor over these parameters, a flat tuple, with an empty KV cache of its own."""
        return self.executor_over(LocalRunner(self.programs, params))

    def executor_over(self, runner: Runner) -> JaxExecutor:
        """An executor over a runner of these programs."""
        state = self.model_state
        return JaxExecutor(runner, self.table, self.geometry, state.config.eos_token_ids, state.num_stages)

    @property
    def facts(self) -> dict[str, str]:
        """What must be the same in all processes that run these programs together."""
        return {
            "sizes": str(self.geometry),
            "rules": str(dict(self.model_state.rules)),
            "buckets": digest(str(self.table.buckets)),
            "parameters": digest(str(self.model_state.parameters)),
        }


def choose_dtype(name: str, config: ModelConfig, mesh: jax.sharding.Mesh) -> jnp.dtype:
    """The dtype of weights and KV: as asked for; auto is the checkpoint's on a GPU, and float32 on a CPU, which computes nothing else fast."""
    if name != "auto":
        return jnp.dtype(name)
    return jnp.dtype(jnp.float32 if mesh.devices.flat[0].platform == "cpu" else config.dtype)


def choose_max_model_len(asked: int | None, config: ModelConfig) -> int:
    """Raises: ConfigError if a longer request is asked for than the model's positions are good for."""
    if asked is None:
        return config.max_position_embeddings
    if asked > config.max_position_embeddings and config.rope.kind != "dynamic":
        raise ConfigError(
            f"max_model_len={asked} must be at most the model's {config.max_position_embeddings} positions: it has never seen later ones. Lower it."
        )
    return asked


def build_runner(
    model_state: ModelState,
    config: EngineConfig,
    load: Callable[[], Sequence[jax.Array]],
    *,
    progress: bool,
    group: Group | None = None,
    variants: tuple[Variant, ...] = tuple(Variant),
) -> tuple[EnginePrograms, LocalRunner | None]:
    """Plan the memory, then load weights and compile all programs at the same time.

    Args:
      load: gives the model's flat tuple of arrays; called once.
      progress: show bars on standard error.
      group: of processes, which all call this at the same time, and come out of it together.
      variants: of steps to compile; requests that need others can't be served.
    Returns: what was compiled, and a runner over it; None if none of the mesh's devices is this process's.
    Raises: ConfigError, CapacityError, GroupError, and what `load` raises.
    """
    table, runner = BucketTable(config.step_tokens, config.max_num_seqs, variants=variants), None
    if not is_here(model_state.mesh):
        programs = compile_engine(model_state, config, table, progress=progress, group=group)
    else:
        with ThreadPoolExecutor(1, "load") as pool:
            params = pool.submit(load)

            def check() -> None:
                """Broken weights and lost processes are told of at once, not after minutes of compiling."""
                if params.done():
                    params.result()
                if group is not None:
                    group.loss.check()

            programs = compile_engine(model_state, config, table, check, progress=progress, group=group)
            with memory_named(programs):
                runner = LocalRunner(programs.programs, params.result())
    if group is not None:
        check_same(group, "programs", programs.facts)
    return programs, runner


@contextmanager
def memory_named(programs: EnginePrograms) -> Iterator[None]:
    """What is left when everything is planned: memory that others hold."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise CapacityError(
            f"KV cache and steps must fit beside the weights ({programs.plan.describe()}), got no such memory: something else holds it. Free it, or"
            " lower memory_fraction or num_pages."
        ) from error


def compile_engine(
    model_state: ModelState,
    config: EngineConfig,
    table: BucketTable,
    check: Callable[[], object] = lambda: None,
    *,
    progress: bool,
    group: Group | None = None,
) -> EnginePrograms:
    """Plan the memory and compile the table's programs. Raises: ConfigError, CapacityError, and what `check` raises: see `compile_all`.

    group: of processes, which compile the same and have to come to the same plan: for the device with least memory.
    """
    use_compile_cache(config.compile_cache)
    kv_dtype = jnp.dtype(model_state.dtype if config.kv_dtype == "auto" else config.kv_dtype)
    has_devices = is_here(model_state.mesh)
    limit_bytes = device_limit_bytes(model_state.mesh.local_devices[0], config.memory_fraction) if has_devices else None
    planner = _Planner(model_state, config, kv_dtype, table, min(_of_all(group, "bytes of memory", limit_bytes)))
    plan, ledger = planner.plan(planner.estimated_temp_bytes()), CompileLedger()
    if planner.is_short(plan):
        # What is estimated is far from above, and KV pages want it: ask the compiler, of the largest step.
        largest = planner.largest_temp_bytes(plan) if has_devices else None
        plan = planner.plan(int(max(_of_all(group, "bytes of the largest step", largest)) * TEMP_MARGIN))
    for _ in range(MAX_PLANS):
        ledger = CompileLedger()
        programs = planner.compile(plan, ledger, check, progress=progress) if has_devices else NO_PROGRAMS
        temp_bytes = max(_of_all(group, "bytes of all steps", ledger.max_memory_bytes if has_devices else None))
        if plan.needed_bytes_with(temp_bytes) <= plan.limit_bytes:
            return EnginePrograms(programs, table, planner.geometry(plan.num_pages), plan, ledger, model_state)
        plan = planner.plan(int(temp_bytes * TEMP_MARGIN))
    raise CapacityError(
        f"Programs must fit into the memory planned for them, got {ledger.max_memory_bytes} bytes of temporary memory against"
        f" {plan.temp_bytes}: lower memory_fraction or token_budget."
    )


def estimate_plan(model_state: ModelState, config: EngineConfig) -> MemoryPlan:
    """The plan that `compile_engine` begins with: nothing is compiled, temporary memory is estimated from above. Raises: ConfigError, CapacityError."""
    kv_dtype = jnp.dtype(model_state.dtype if config.kv_dtype == "auto" else config.kv_dtype)
    limit_bytes = device_limit_bytes(model_state.mesh.local_devices[0], config.memory_fraction)
    table = BucketTable(config.step_tokens, config.max_num_seqs)
    planner = _Planner(model_state, config, kv_dtype, table, limit_bytes)
    return planner.plan(planner.estimated_temp_bytes())


def _of_all(group: Group | None, topic: str, value: int | None) -> list[int]:
    """Every process's value, without those that have none; of a process that is alone, its own."""
    values = [value] if group is None else group.exchange(topic, value)
    return [each for each in values if each is not None]


@dataclass(frozen=True, slots=True)
class _Planner:
    model_state: ModelState
    config: EngineConfig
    kv_dtype: jnp.dtype
    table: BucketTable
    limit_bytes: int

    def geometry(self, num_pages: int) -> Geometry:
        max_model_len = choose_max_model_len(self.config.max_model_len, self.model_state.config)
        return Geometry(
            num_pages,
            self.config.page_size,
            math.ceil(max_model_len / self.config.page_size),
            self.config.max_num_seqs,
            max_model_len,
            self.model_state.config.vocab_size,
            self.config.step_tokens,
        )

    def estimated_temp_bytes(self) -> int:
        """Temporary memory of the largest step, from above: a few arrays of logits, and the widest activations of a layer or two."""
        model = self.model_state.config
        parts = num_parts(self.model_state.rules, "mlp", self.model_state.mesh)
        largest = max(self.table.buckets, key=lambda bucket: bucket.num_tokens)
        logits = 6 * largest.num_rows * model.vocab_size * 4
        widest = 4 * model.hidden_size + (2 * model.mlp_width + 6 * model.num_heads * model.head_dim) // parts
        return logits + 4 * largest.num_tokens * widest * 4 + (64 << 20)

    @property
    def max_pages(self) -> int:
        """What all batch slots can use at once."""
        return self.geometry(0).blocks_per_row * self.config.max_num_seqs

    def is_short(self, plan: MemoryPlan) -> bool:
        """Whether more memory would mean more KV pages."""
        return self.config.num_pages is None and plan.num_pages < self.max_pages

    def largest_temp_bytes(self, plan: MemoryPlan) -> int:
        """Temporary memory of the step that needs most of it, most likely: the one of most tokens that does most with logits."""
        largest = max(self.table.buckets, key=lambda bucket: (bucket.num_tokens, bucket.variant))
        ledger = CompileLedger()
        self._builder(plan, ledger).compile_step(largest)
        return ledger.max_memory_bytes

    def plan(self, temp_bytes: int) -> MemoryPlan:
        model, config = self.model_state.config, self.config
        blocks_per_row = self.geometry(0).blocks_per_row
        return plan_memory(
            limit_bytes=self.limit_bytes,
            weight_bytes=self.model_state.num_bytes,
            temp_bytes=temp_bytes,
            page_bytes=kv_bytes_per_page(model, config.page_size, self.kv_dtype, self.model_state.num_kv_parts),
            page_size=config.page_size,
            min_pages=blocks_per_row + 1,
            max_pages=self.max_pages,
            num_pages=config.num_pages,
        )

    def compile(
        self, plan: MemoryPlan, ledger: CompileLedger, check: Callable[[], object], *, progress: bool
    ) -> Programs:
        return self._builder(plan, ledger).compile_all(self.table.buckets, check, progress=progress)

    def _builder(self, plan: MemoryPlan, ledger: CompileLedger) -> ProgramBuilder:
        device = self.model_state.mesh.devices.flat[0]
        use = registry.use_on(device, self.kv_dtype, self.model_state.config.head_dim)
        kernels = registry.choose_kernels(use, implementation=self.config.kernels)
        return ProgramBuilder(self.model_state, self.geometry(plan.num_pages), kernels, self.kv_dtype, ledger)
