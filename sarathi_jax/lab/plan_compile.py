"""The steps of a planned mesh, compiled: for GPUs that need not be there, or, without what that takes, for CPU devices that stand in for them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import jax

from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.gpu_defaults import devices, quiet_libraries
from sarathi_jax.lab.described_gpus import DESCRIBED_GPUS, can_describe, described_mesh
from sarathi_jax.lab.plan import Deployment
from sarathi_jax.lab.step_report import StepReport, report_step
from sarathi_jax.models import ModelConfig
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.rules import Rules
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.placement import AXES, Placement


@dataclass(frozen=True, slots=True)
class CompiledSteps:
    """Programs of one replica. is_described: compiled for the GPU itself; else for the host's CPU, which tells weights and how many collectives there are, but neither their bytes nor kernels nor temporary memory as a GPU has them."""

    is_described: bool
    decode: StepReport
    full: StepReport

    @property
    def temp_bytes(self) -> int:
        return max(self.decode.temp_bytes, self.full.temp_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """What the cost model does not ask: as EngineConfig's fields of these names. variant: what is done with logits."""

    rules: Rules
    page_size: int
    dtype: str
    kv_dtype: str
    variant: Variant


def compile_layout(
    config: ModelConfig,
    deployment: Deployment,
    placement: Placement,
    steps: tuple[Bucket, Bucket],
    options: CompileOptions,
) -> CompiledSteps:
    """Compile a replica's decode-only and full steps and read them. Raises: ConfigError, as `described_mesh`, `abstract_model` and `report_step`."""
    shape = {axis: getattr(placement, axis) for axis in AXES[1:] if getattr(placement, axis) > 1}
    gpu, is_described = deployment.device.name, can_describe()
    mesh = described_mesh(gpu, shape, deployment.gpus_per_host) if is_described else stand_in_mesh(shape)

    def report(bucket: Bucket) -> StepReport:
        return report_step(
            config,
            mesh,
            DESCRIBED_GPUS[gpu].memory,
            bucket,
            links=Links(deployment.system),
            gpus_per_host=deployment.gpus_per_host,
            page_size=options.page_size,
            dtype=options.dtype,
            kv_dtype=options.kv_dtype,
            rules=options.rules,
        )

    with quiet_libraries():  # XLA says of each program that its arguments exceed 80 % of the memory, as KV pages are to
        return CompiledSteps(is_described, *map(report, steps))


def step_buckets(num_rows: int, token_budget: int, variant: Variant) -> tuple[Bucket, Bucket]:
    """A microbatch of decodes alone, and one of the full budget with a row more."""
    return Bucket(num_rows, num_rows, True, variant), Bucket(token_budget, num_rows + 1, False, variant)


def stand_in_mesh(shape: Mapping[str, int]) -> jax.sharding.Mesh:
    """A mesh of CPU devices. Raises: ConfigError if jax has made its devices already, and too few."""
    num_devices = 1
    for size in shape.values():
        num_devices *= size
    with suppress(RuntimeError):  # it has: whether they are enough shows below
        jax.config.update("jax_num_cpu_devices", num_devices)
    return make_mesh(shape, devices("cpu"))
