"""Weights that are no numbers, looked for on the devices: there, reading all of them takes no longer than one decode step does."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sarathi_jax.errors import ModelError

MAX_NAMED = 3


def check_finite(arrays: Mapping[str, jax.Array]) -> None:
    """Look at what this process holds of each parameter. Raises: ModelError, naming those that hold NaN or infinity."""
    floats = {path: array for path, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating)}
    verdicts = {path: _checker(array.sharding)(array) for path, array in floats.items()}
    wrong = [
        path
        for path, verdict in verdicts.items()
        if not all(np.asarray(shard.data).all() for shard in verdict.addressable_shards)
    ]
    if wrong:
        more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        raise ModelError(
            f"weights must be finite, got NaN or infinity in {', '.join(wrong[:MAX_NAMED])}{more}: get the model's files again, or pass"
            " check_weights=False to run it as it is."
        )


@lru_cache(maxsize=256)
def _checker(sharding: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    """Compiled once for all parameters that look alike. Gives each device's verdict on what it holds: nothing is sent between devices."""

    def is_finite(shard: jax.Array) -> jax.Array:
        return jnp.isfinite(shard).all()[None]

    if not isinstance(sharding, NamedSharding):
        return jax.jit(is_finite)
    mesh = sharding.mesh
    return jax.jit(
        jax.shard_map(
            is_finite, mesh=mesh, in_specs=sharding.spec, out_specs=PartitionSpec(mesh.axis_names), check_vma=False
        )
    )
