"""Weights that are no numbers, looked for on the devices: there, reading all of them takes no longer than one decode step does."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sarathi_jax.errors import ModelError

MAX_NAMED = 3

_is_finite = jax.jit(lambda array: jnp.isfinite(array).all())


def check_finite(arrays: Mapping[str, jax.Array]) -> None:
    """Look at what this process holds of each parameter. Raises: ModelError, naming those that hold NaN or infinity."""
    floats = {path: array for path, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating)}
    found = {path: [_is_finite(shard.data) for shard in array.addressable_shards] for path, array in floats.items()}
    wrong = [path for path, verdicts in found.items() if not all(map(np.asarray, verdicts))]
    if wrong:
        more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        raise ModelError(
            f"weights must be finite, got NaN or infinity in {', '.join(wrong[:MAX_NAMED])}{more}: get the model's files again, or pass"
            " check_weights=False to run it as it is."
        )
