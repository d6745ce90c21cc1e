"""Meshes of devices, by axis name. From outside in: `data`, replicas of the engine; `stage`, of a pipeline; `expert` and `tensor`, parts of a layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sarathi_jax.errors import ConfigError
from sarathi_jax.gpu_defaults import apply_defaults
from sarathi_jax.gpu_defaults import devices as all_devices

AXES = ("data", "stage", "expert", "tensor")


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A mesh over the first devices there are, `tensor` innermost: what talks most is closest together.

    shape: devices by axis. Axes come in the order of `AXES`, and an axis that is not named, but for `tensor`, is not there.
    Raises: ConfigError if there are fewer devices than the mesh needs; if they belong to several processes, more too.
    """
    if devices is None:
        apply_defaults()
        devices = sorted(all_devices(), key=lambda device: (device.process_index, device.id))
    sizes = {axis: shape.get(axis, 1) for axis in AXES if axis in shape or axis == "tensor"}
    assert shape.keys() <= sizes.keys(), "axes of a mesh are those of AXES"
    num_devices = math.prod(sizes.values())
    if num_devices > len(devices):
        more = (
            f", or make more of the CPU with JAX_NUM_CPU_DEVICES={num_devices}" if devices[0].platform == "cpu" else ""
        )
        raise ConfigError(
            f"mesh {','.join(f'{axis}={size}' for axis, size in shape.items())} needs {num_devices} devices, got {len(devices)}"
            f" ({devices[0].platform}): make the mesh smaller{more}."
        )
    if num_devices < len(devices) and len({device.process_index for device in devices}) > 1:
        raise ConfigError(
            f"With several processes the mesh must use every device, got {num_devices} of {len(devices)}: write --mesh tensor={len(devices)}, or other"
            " axes of that product."
        )
    return jax.sharding.Mesh(np.array(devices[:num_devices]).reshape(tuple(sizes.values())), tuple(sizes))


def replica_meshes(mesh: jax.sharding.Mesh) -> list[jax.sharding.Mesh]:
    """The meshes of the engine's replicas: one for each place along `data`."""
    if "data" not in mesh.axis_names:
        return [mesh]
    place = mesh.axis_names.index("data")
    names = tuple(name for name in mesh.axis_names if name != "data")
    return [jax.sharding.Mesh(devices, names) for devices in np.moveaxis(mesh.devices, place, 0)]


def axis_size(mesh: jax.sharding.Mesh, axis: str) -> int:
    """Devices along an axis; 1 if the mesh has no such axis."""
    return mesh.shape.get(axis, 1)


def process_ids(mesh: jax.sharding.Mesh) -> list[int]:
    """The processes that a mesh's devices belong to."""
    return sorted({device.process_index for device in mesh.devices.flat})


def is_here(mesh: jax.sharding.Mesh) -> bool:
    """Whether some of a mesh's devices are this process's."""
    return jax.process_index() in process_ids(mesh)
