"""Runs schedules: packs one in the shape of its bucket, has a `Runner` dispatch it, hands out what comes back. Knows nothing of queues."""

import logging

import jax
import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from sarathi_jax.errors import EngineError
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant, largest_first
from sarathi_jax.execution.device_runner import Runner
from sarathi_jax.execution.device_state import pack_slot
from sarathi_jax.execution.packing import Geometry, SlotTables, pack, pack_padding
from sarathi_jax.execution.sampling_row import pack_sampling_row
from sarathi_jax.execution.step_output import read_step_output
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult

logger = logging.getLogger(__name__)


class JaxExecutor:
    """The `Executor` over compiled step programs.

    Args:
      runner: over programs of exactly these buckets and this geometry.
      eos_token_ids: the model's, which min_tokens forbids.
    """

    def __init__(
        self,
        runner: Runner,
        table: BucketTable,
        geometry: Geometry,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self.geometry = geometry
        self.table = table
        self.runner = runner
        self._eos_token_ids = eos_token_ids
        self._slots = SlotTables(geometry)
        self._num_lost_states = 0

    def warm_up(self, *, progress: bool) -> None:
        """Run every program once, on padding alone: the first run of one loads its code and captures its CUDA graph, which no request is to wait for.

        progress: show a bar on standard error.
        """
        buckets = largest_first(self.table.buckets)
        for bucket in tqdm(buckets, desc="warm up", unit="program", disable=not progress):
            np.asarray(self.runner.run_step(bucket, pack_padding(bucket, self.geometry)))

    def submit(self, schedule: Schedule) -> "JaxStepHandle":
        """Dispatch a step; returns at once. A fault of the device is raised by the handle."""
        first_rows = [row for row in schedule.rows if row.is_first]
        for row in first_rows:
            self._slots.variants[row.batch_slot] = variant_of(row.sampling)
            self._slots.sampling[row.batch_slot] = pack_sampling_row(row.sampling, row.seed)
        bucket = self.table.choose(
            schedule.num_tokens,
            len(schedule.rows),
            is_decode_only=schedule.is_decode_only,
            variant=self._slots.variant(schedule.rows),
        )
        packed = pack(schedule, bucket, self.geometry, self._slots)
        generation = self._num_lost_states
        try:
            for row in first_rows:
                self._set_slot(row)
            out = self.runner.run_step(bucket, packed)
        except jax.errors.JaxRuntimeError as error:
            self.forget_state(
                generation
            )  # at once: the next step may be submitted before this one's result is asked for
            return JaxStepHandle(self, schedule, bucket, error, generation)
        return JaxStepHandle(self, schedule, bucket, out, generation)

    def close(self) -> None:
        self.runner.close()

    def _set_slot(self, row: ScheduledRow) -> None:
        """Set up the batch slot of a request that was just admitted, on the device if `full` steps serve it."""
        if self._slots.variants[row.batch_slot] == Variant.FULL:
            context = np.array(row.context_token_ids, np.int32)
            eos_token_ids = () if row.sampling.ignore_eos else self._eos_token_ids
            self.runner.set_slot(pack_slot(row.batch_slot, context, row.sampling, eos_token_ids, self.geometry))

    def forget_state(self, generation: int) -> None:
        """A step failed and took the donated state with it: start again with an empty one, once for all steps that were in flight.

        Raises: EngineError if the device can't give even that.
        """
        if generation == self._num_lost_states:
            self._num_lost_states += 1
            try:
                self.runner.reset()
            except jax.errors.JaxRuntimeError as error:
                raise EngineError(
                    f"After a failed step an empty KV cache must be made, got {str(error)[:500]}: start the engine again."
                ) from error


class JaxStepHandle:
    """A step in flight."""

    def __init__(
        self,
        executor: JaxExecutor,
        schedule: Schedule,
        bucket: Bucket,
        out: ArrayLike | Exception,
        generation: int,
    ) -> None:
        self.bucket = bucket
        self._executor = executor
        self._schedule = schedule
        self._out = out
        self._generation = generation

    def result(self) -> StepResult:
        """Wait for the step. Raises: EngineError if it failed; the KV cache is empty then."""
        try:
            if isinstance(self._out, Exception):
                raise self._out
            words = np.asarray(self._out)
        except jax.errors.JaxRuntimeError as error:
            self._executor.forget_state(self._generation)
            raise EngineError(
                f"Step {self._schedule.step} ({self.bucket.name}) must run to its end, got {str(error)[:500]}: its requests are computed again."
            ) from error
        return read_step_output(words, self._schedule, self.bucket)


def variant_of(sampling: SamplingParams) -> Variant:
    """The least variant that serves a request. It does not change while the request lives."""
    is_full = (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
        or bool(sampling.logit_bias)
        or sampling.allowed_token_ids is not None
        or sampling.min_tokens > 0
        or sampling.logprobs is not None
        or sampling.prompt_logprobs is not None
    )
    if is_full:
        return Variant.FULL
    return Variant.GREEDY if sampling.is_greedy else Variant.SAMPLE
