"""GPUs that need not be there: what XLA's compiler has to know of one, so that a whole program is compiled for it on any machine.

Needs the `aot` extra (jax's CUDA plugin and an assembler), and jax on the CPU. What comes out is real but for autotuning: products of matrices take
default sizes. The numbers are those of the vendor's devices as XLA itself describes them (jax-cuda12-plugin's `target_config`); the A40's, which it does
not, are its datasheet's.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from typing import NamedTuple

import jax

from sarathi_jax.errors import ConfigError
from sarathi_jax.kernels.gpu import A100, H100, GpuTarget
from sarathi_jax.sharding.mesh import make_mesh

INSTALL_HINT = "To compile for GPUs without one: pip install 'sarathi-jax[aot]'."
CUDA = "12.9.0"  # driver, runtime and toolkit: what the cuda12 extra installs
GPUS_PER_HOST = 8


class DescribedGpu(NamedTuple):
    """One kind of GPU. Sizes in bytes, bandwidth in bytes/s."""

    kind: str  # as the driver names it
    target: GpuTarget
    fpus_per_multiprocessor: int
    clock_ghz: float
    memory: int
    memory_bandwidth: int
    l2_cache: int
    shared_memory: int  # of a multiprocessor
    shared_memory_per_program: int
    num_links: int


A100_40G = DescribedGpu(
    kind="NVIDIA A100-SXM4-40GB",
    target=A100,
    fpus_per_multiprocessor=64,
    clock_ghz=1.41,
    memory=42331013120,
    memory_bandwidth=1555000000000,
    l2_cache=41943040,
    shared_memory=167936,
    shared_memory_per_program=166912,
    num_links=12,
)
H100_80G = DescribedGpu(
    kind="NVIDIA H100 80GB HBM3",
    target=H100,
    fpus_per_multiprocessor=128,
    clock_ghz=1.98,
    memory=84942979072,
    memory_bandwidth=3352320000000,
    l2_cache=52428800,
    shared_memory=233472,
    shared_memory_per_program=232448,
    num_links=18,
)
A40 = DescribedGpu(
    kind="NVIDIA A40",
    target=GpuTarget(86, 84),
    fpus_per_multiprocessor=128,
    clock_ghz=1.74,
    memory=48305799168,
    memory_bandwidth=696000000000,
    l2_cache=6291456,
    shared_memory=102400,
    shared_memory_per_program=101376,
    num_links=4,
)
DESCRIBED_GPUS: dict[str, DescribedGpu] = {
    "a100-40g": A100_40G,
    "a100-80g": A100_40G._replace(kind="NVIDIA A100-SXM4-80GB", memory=85100068864, memory_bandwidth=2039040000000),
    "h100": H100_80G,
    "h200": H100_80G._replace(kind="NVIDIA H200", memory=150754820096, memory_bandwidth=4800000000000),
    "a40": A40,
}


def can_describe() -> bool:
    """Whether jax can compile for GPUs here: the `aot` extra, or a GPU's own plugin."""
    return find_spec("jax_cuda12_plugin") is not None


def described_mesh(gpu: str, shape: Mapping[str, int], gpus_per_host: int = GPUS_PER_HOST) -> jax.sharding.Mesh:
    """A mesh of GPUs that are only described, host by host in the mesh's order.

    Raises: ConfigError if nobody described such a GPU, the mesh does not fill whole hosts, or the `aot` extra is missing.
    """
    if gpu not in DESCRIBED_GPUS:
        raise ConfigError(f"gpu must be one of {', '.join(DESCRIBED_GPUS)}, got {gpu!r}: choose one of these.")
    if not can_describe():
        raise ConfigError("Compiling for a GPU needs jax's CUDA plugin, got none: pip install 'sarathi-jax[aot]'.")
    num_gpus = prod(shape.values())
    num_hosts, num_left = divmod(num_gpus, gpus_per_host)
    if num_hosts and num_left:
        raise ConfigError(
            f"A mesh must fit on one host or fill whole hosts of {gpus_per_host} GPUs, got {num_gpus}: choose another mesh."
        )
    topology = f"1x{max(num_hosts, 1)}x{gpus_per_host if num_hosts else num_gpus}"
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(DESCRIBED_GPUS[gpu]), topology=topology
    )
    return make_mesh(shape, described.devices)


def target_config(gpu: DescribedGpu) -> str:
    """XLA's GpuTargetConfigProto, as text."""
    feature = "NONE" if gpu.target.sm < 90 else "ACCELERATED_FEATURES"
    return f"""
platform_name: "CUDA"  device_description_str: "{gpu.kind}"  dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  name: "{gpu.kind}"  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {gpu.target.sm // 10} minor: {gpu.target.sm % 10} feature_extension: {feature} }}
  driver_version: "{CUDA}"  runtime_version: "{CUDA}"  compile_time_toolkit_version: "{CUDA}"  dnn_version: "9.10.0"
  core_count: {gpu.target.num_multiprocessors}  fpus_per_core: {gpu.fpus_per_multiprocessor}  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}  memory_bandwidth: {gpu.memory_bandwidth}  l2_cache_size: {gpu.l2_cache}
  device_interconnect_info {{ active_links: {gpu.num_links} }}
  shared_memory_per_block: 49152  shared_memory_per_block_optin: {gpu.shared_memory_per_program}  shared_memory_per_core: {gpu.shared_memory}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
}}
"""
