"""Runs schedules on devices: packs one, dispatches the program of its bucket, hands out what comes back. Owns the device state; knows nothing of queues."""

import logging
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from sarathi_jax.errors import EngineError
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant
from sarathi_jax.execution.device_state import DeviceState, pack_slot
from sarathi_jax.execution.packing import Geometry, SlotTables, pack, pack_padding
from sarathi_jax.execution.programs import Programs
from sarathi_jax.execution.sampling_row import pack_sampling_row
from sarathi_jax.execution.step_output import read_step_output
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult

logger = logging.getLogger(__name__)


class JaxExecutor:
    """The `Executor` over compiled step programs.

    Args:
      programs: compiled for exactly these buckets and this geometry.
      params: the model's flat tuple.
      eos_token_ids: the model's, which min_tokens forbids.
    """

    def __init__(
        self,
        programs: Programs,
        params: Sequence[jax.Array],
        table: BucketTable,
        geometry: Geometry,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self.geometry = geometry
        self.table = table
        self._programs = programs
        self._params = tuple(params)
        self._eos_token_ids = eos_token_ids
        self._slots = SlotTables(geometry)
        self._state: DeviceState | None = programs.make_state()
        self._num_lost_states = 0

    def warm_up(self, *, progress: bool) -> None:
        """Run every program once, on padding alone: the first run of one loads its code and captures its CUDA graph, which no request is to wait for.

        progress: show a bar on standard error.
        """
        assert self._state is not None, "the executor is closed"
        steps = self._programs.steps
        for bucket in tqdm(steps, desc="warm up", unit="program", disable=not progress):
            self._state, out = steps[bucket](self._params, self._state, pack_padding(bucket, self.geometry))
            out.block_until_ready()

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
            assert self._state is not None, "the executor is closed"
            for row in first_rows:
                self._set_slot(row)
            self._state, out = self._programs.steps[bucket](self._params, self._state, packed)
            out.copy_to_host_async()
        except jax.errors.JaxRuntimeError as error:
            self.forget_state(
                generation
            )  # at once: the next step may be submitted before this one's result is asked for
            return JaxStepHandle(self, schedule, bucket, error, generation)
        return JaxStepHandle(self, schedule, bucket, out, generation)

    def close(self) -> None:
        self._state, self._params = None, ()

    def _set_slot(self, row: ScheduledRow) -> None:
        """Set up the batch slot of a request that was just admitted, on the device if `full` steps serve it."""
        if self._slots.variants[row.batch_slot] == Variant.FULL:
            assert self._state is not None, "the executor is closed"
            context = np.array(row.context_token_ids, np.int32)
            eos_token_ids = () if row.sampling.ignore_eos else self._eos_token_ids
            packed = pack_slot(row.batch_slot, context, row.sampling, eos_token_ids, self.geometry)
            self._state = self._state._replace(slots=self._programs.set_slot(self._state.slots, packed))

    def forget_state(self, generation: int) -> None:
        """A step failed and took the donated state with it: start again with an empty one, once for all steps that were in flight.

        Raises: EngineError if the device can't give even that.
        """
        if generation == self._num_lost_states and self._state is not None:
            self._num_lost_states += 1
            try:
                self._state = self._programs.make_state()
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
        out: jax.Array | Exception,
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
