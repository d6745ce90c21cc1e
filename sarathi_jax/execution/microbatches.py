"""The microbatches of a pipeline: packed steps on their way through its stages, laid out anew for each tick in the shape of one bucket. Imports numpy only.

A microbatch enters at the first stage and is one stage further at each tick. All stages run the same program, so a tick's bucket is the smallest that holds
every microbatch under way; its variant is that of the oldest one, which is the one that is sampled. One stage is the plain case: a tick is a step.
"""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sarathi_jax.execution.buckets import Bucket, BucketTable
from sarathi_jax.execution.packing import Geometry, pack_padding, packed_fields


class Microbatch(NamedTuple):
    """A packed step, and the bucket it was packed for."""

    bucket: Bucket
    packed: np.ndarray


class MicrobatchWindow:
    """The microbatches under way, newest first; None where a stage has nothing to do."""

    def __init__(self, num_stages: int, table: BucketTable, geometry: Geometry) -> None:
        self._table = table
        self._geometry = geometry
        self._window: deque[Microbatch | None] = deque([None] * num_stages, maxlen=num_stages)

    @property
    def num_stages(self) -> int:
        return len(self._window)

    @property
    def oldest(self) -> Microbatch | None:
        """What the last stage runs at the latest tick."""
        return self._window[-1]

    def advance(self, entering: Microbatch | None) -> Microbatch:
        """All microbatches go one stage further, and one may enter. Returns: the tick that runs them, i32[stages * packed_size]."""
        self._window.appendleft(entering)
        if self.num_stages == 1 and entering is not None:
            return entering
        bucket = self._choose_bucket()
        parts = [
            pack_padding(bucket, self._geometry) if each is None else fit(each, bucket, self._geometry)
            for each in self._window
        ]
        return Microbatch(bucket, np.concatenate(parts))

    def clear(self) -> None:
        """What is under way is given up."""
        self._window.extend([None] * self.num_stages)

    def _choose_bucket(self) -> Bucket:
        buckets = [each.bucket for each in self._window if each is not None]
        assert buckets, "a tick runs something"
        return self._table.choose(
            max(bucket.num_tokens for bucket in buckets),
            max(bucket.num_rows for bucket in buckets),
            is_decode_only=all(bucket.is_decode_only for bucket in buckets),
            variant=self._table.least_variant if self.oldest is None else self.oldest.bucket.variant,
        )


def fit(microbatch: Microbatch, bucket: Bucket, geometry: Geometry) -> np.ndarray:
    """A packed step in the shape of a bucket that is at least as large; fields that either has not are left out or are padding's."""
    if microbatch.bucket == bucket:
        return microbatch.packed
    packed = pack_padding(bucket, geometry)
    old, new = _views(microbatch, geometry), _views(Microbatch(bucket, packed), geometry)
    for name in old.keys() & new.keys():
        new[name][tuple(slice(size) for size in old[name].shape)] = old[name]
    bounds = old["cu_q_lens"]
    new["cu_q_lens"][len(bounds) :] = bounds[-1]
    return packed


def _views(microbatch: Microbatch, geometry: Geometry) -> Mapping[str, np.ndarray]:
    fields = packed_fields(microbatch.bucket, geometry.blocks_per_row)
    return {
        name: microbatch.packed[field.offset : field.offset + field.size].reshape(field.shape)
        for name, field in fields.items()
    }
