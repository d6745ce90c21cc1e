"""What a step takes from the host, as arrays by name."""

from collections.abc import Mapping

import jax

from sarathi_jax.execution.buckets import Bucket
from sarathi_jax.execution.packing import packed_fields

Inputs = Mapping[str, jax.Array]


def unpack(packed: jax.Array, bucket: Bucket, blocks_per_row: int) -> Inputs:
    """The fields of a packed array, by name, each an array of its own.

    Without the barrier XLA would let kernels read slices of the argument, whose address changes from step to step: each of those calls would be captured
    anew for the CUDA graph, or be left out of it.
    """
    return jax.lax.optimization_barrier(
        {
            name: packed[field.offset : field.offset + field.size].reshape(field.shape)
            for name, field in packed_fields(bucket, blocks_per_row).items()
        }
    )
