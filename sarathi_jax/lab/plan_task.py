"""What `sarathi-jax plan` is asked: a model, GPUs, a load and an engine's options, checked and brought together; and its answer for one mesh or for all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp

from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.buckets import Variant
from sarathi_jax.execution.build import choose_max_model_len
from sarathi_jax.lab.cost_inputs import cuts_of, model_shape, unpriced
from sarathi_jax.lab.plan import Deployment, Layout, Load, compare_layouts, memory_of, plan_layout, shortage
from sarathi_jax.lab.plan_compile import CompiledSteps, CompileOptions, compile_layout, step_buckets
from sarathi_jax.models import ModelConfig
from sarathi_jax.sharding.rules import find_rules
from sarathi_jax.simulation.hardware import Device, System, default_system, load_device, load_host, load_system

HOST = "sarathi-jax"
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Planned:
    """One mesh's answer. compiled: what its programs say, if they were asked."""

    layout: Layout
    compiled: CompiledSteps | None = None

    @property
    def ticks_s(self) -> dict[str, float] | None:
        """Ticks of the decode-only and the full step, with the compiled programs' own collectives in place of the cost model's; None where nothing was compiled for a GPU."""
        if self.compiled is None or not self.compiled.is_described:
            return None
        steps = ("decode", self.layout.decode, self.compiled.decode), ("full", self.layout.full, self.compiled.full)
        return {
            name: max(sum(estimate.parts.values()) - estimate.talk_s + report.talk_s, estimate.host_s)
            for name, estimate, report in steps
            if estimate is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTask:
    """engine: the options that a plan knows. options: of compiling."""

    engine: EngineConfig
    config: ModelConfig
    deployment: Deployment
    load: Load
    options: CompileOptions

    def plan(self, mesh: Mapping[str, int], *, does_compile: bool) -> Planned:
        """One mesh. Raises: ConfigError, as `Placement`, `plan_layout` and `compile_layout`."""
        layout = plan_layout(self.deployment, self.deployment.place(**mesh), self.load)
        return self._compiled(layout) if does_compile else Planned(layout)

    def compare(self, rank_by: str, *, does_compile: bool) -> list[Planned]:
        """All meshes that take all of the GPUs, best first. Raises: ConfigError, as `plan`."""
        layouts = compare_layouts(self.deployment, self.load, rank_by)
        return [self._compiled(layout) if does_compile else Planned(layout) for layout in layouts]

    def best(self, *, does_compile: bool) -> Planned:
        """The mesh of all GPUs with the least decode latency. Raises: ConfigError if none holds the model and the load; and as `plan`."""
        first = compare_layouts(self.deployment, self.load)[0]
        if first.why_not:
            raise ConfigError(
                f"Some mesh of {self.deployment.num_hosts}x{self.deployment.gpus_per_host} {self.deployment.device.name} must hold the model and the load, got"
                f" none ({first.placement.describe()}: {first.why_not}): add GPUs, or lower --batch-size or --context. --compare lists the reasons."
            )
        return self._compiled(first) if does_compile else Planned(first)

    @property
    def unpriced_axes(self) -> Mapping[str, tuple[str, ...]]:
        """What the sharding table cuts and the cost model takes for whole."""
        return unpriced(self.options.rules)

    def _compiled(self, layout: Layout) -> Planned:
        """What the compiled programs say in place of what was estimated; nothing is compiled for a mesh that can't be."""
        if layout.why_not or layout.memory is None or layout.decode is None:
            return Planned(layout)
        buckets = step_buckets(layout.decode.num_rows, self.load.token_budget, self.options.variant)
        compiled = compile_layout(self.config, self.deployment, layout.placement, buckets, self.options)
        # A stand-in's temporary memory says nothing of a GPU's.
        temp_bytes = compiled.temp_bytes if compiled.is_described else layout.memory.temp_bytes
        report = compiled.full
        memory = memory_of(self.deployment, report.weight_bytes, temp_bytes, report.kv_token_bytes)
        reason = shortage(self.deployment, layout.placement, memory, self.load)
        return Planned(replace(layout, memory=memory, why_not=reason), compiled)


def make_task(
    engine: EngineConfig,
    *,
    device: str,
    num_hosts: int,
    gpus_per_host: int,
    system: str | None = None,
    batch_size: int = 64,
    context: int | None = None,
    variant: Variant = Variant.GREEDY,
) -> PlanTask:
    """Check it all, and find the model.

    Args:
      device, system: by the names in `simulation/hardware.json`; system None: the device's own, with hosts that large.
      context: tokens that a decode attends to; None: 4,096, or as many as the model takes.
    Raises: ConfigError; ModelError.
    """
    gpu, links = find_hardware(device, system, gpus_per_host)
    config = find_model(engine.model, is_dummy=True).config
    max_model_len = choose_max_model_len(engine.max_model_len, config)
    rules = find_rules(engine.rules)
    dtype, kv_dtype = dtypes_on_gpu(engine, config)
    deployment = Deployment(
        model=model_shape(config, jnp.dtype(dtype).itemsize, kv_dtype),
        device=gpu,
        system=links,
        host=load_host(HOST),
        num_hosts=num_hosts,
        gpus_per_host=gpus_per_host,
        max_model_len=max_model_len,
        memory_fraction=engine.memory_fraction,
        cuts=cuts_of(rules),
    )
    load = Load(
        batch_size=batch_size,
        context=min(DEFAULT_CONTEXT, max_model_len) if context is None else context,
        token_budget=engine.step_tokens,
    )
    options = CompileOptions(rules=rules, page_size=engine.page_size, dtype=dtype, kv_dtype=kv_dtype, variant=variant)
    return PlanTask(engine=engine, config=config, deployment=deployment, load=load, options=options)


def find_hardware(device: str, system: str | None, gpus_per_host: int) -> tuple[Device, System]:
    """By their names; system None: the device's own, with hosts that large. Raises: ConfigError."""
    gpu, links = load_device(device), load_system(system) if system else default_system(device, gpus_per_host)
    if device not in links.devices or gpus_per_host > links.max_gpus_per_host:
        raise ConfigError(
            f"Hosts of {links.name} must have at most {links.max_gpus_per_host} of {', '.join(links.devices)}, got {gpus_per_host} {device}: choose"
            " another system or topology."
        )
    return gpu, links


def dtypes_on_gpu(engine: EngineConfig, config: ModelConfig) -> tuple[str, str]:
    """Of weights and of KV. Where none is asked for it is 16 bits: products of 32 are not what a GPU's constants are of."""
    own = "bfloat16" if config.dtype == "float32" else config.dtype
    dtype = own if engine.dtype == "auto" else engine.dtype
    return dtype, dtype if engine.kv_dtype == "auto" else engine.kv_dtype


def default_topology(mesh: Mapping[str, int]) -> tuple[int, int]:
    """One host with as many GPUs as the mesh takes."""
    return 1, math.prod(mesh.values())
