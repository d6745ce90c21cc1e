"""Meshes of devices, by axis name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sarathi_jax.errors import ConfigError
from sarathi_jax.gpu_defaults import apply_defaults


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A mesh over the first devices there are. An axis that is not named has one device.

    Raises: ConfigError if there are fewer devices than the mesh needs.
    """
    if devices is None:
        apply_defaults()
        devices = jax.devices()
    sizes = {"tensor": 1, **shape}
    num_devices = math.prod(sizes.values())
    if num_devices > len(devices):
        raise ConfigError(
            f"mesh {','.join(f'{axis}={size}' for axis, size in shape.items())} needs {num_devices} devices, got {len(devices)}"
            f" ({devices[0].platform}): make the mesh smaller."
        )
    return jax.sharding.Mesh(np.array(devices[:num_devices]).reshape(tuple(sizes.values())), tuple(sizes))
