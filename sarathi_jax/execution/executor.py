"""Runs schedules: packs one in the shape of its bucket, has a `Runner` dispatch it, hands out what comes back. Knows nothing of queues."""

import logging

import jax
import numpy as np
from tqdm import tqdm

from sarathi_jax.errors import EngineError, GroupError
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant, largest_first
from sarathi_jax.execution.device_runner import Runner, StepWords
from sarathi_jax.execution.device_state import pack_masks, pack_slot
from sarathi_jax.execution.microbatches import Microbatch, MicrobatchWindow
from sarathi_jax.execution.packing import Geometry, SlotTables, pack, pack_padding
from sarathi_jax.execution.sampling_row import pack_sampling_row
from sarathi_jax.execution.step_output import read_step_output
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult

logger = logging.getLogger(__name__)


class JaxExecutor:
    """The `Executor` over compiled step programs.

    With stages, a step is a microbatch on its way through a pipeline: each tick takes one in and all others one stage further, and its tokens come of the
    tick at which it leaves the last stage. Ticks with nothing to take in are run when a result is asked for that needs them.

    Args:
      runner: over programs of exactly these buckets and this geometry.
      eos_token_ids: the model's, which min_tokens forbids.
      num_stages: of the programs' pipeline.
    """

    def __init__(
        self,
        runner: Runner,
        table: BucketTable,
        geometry: Geometry,
        eos_token_ids: tuple[int, ...],
        num_stages: int = 1,
    ) -> None:
        self.geometry = geometry
        self.table = table
        self.runner = runner
        self.num_stages = num_stages
        self._eos_token_ids = eos_token_ids
        self._slots = SlotTables(geometry)
        self._window = MicrobatchWindow(num_stages, table, geometry)
        self._num_ticks = 0
        self._outs: dict[int, tuple[Bucket, StepWords]] = {}  # by tick, of steps that nobody has read yet
        self._num_lost_states = 0

    def warm_up(self, *, progress: bool) -> None:
        """Run every program of steps once, on padding alone: the first run of one loads its code and captures its CUDA graph, which no request is to wait for.

        progress: show a bar on standard error.
        """
        buckets = largest_first(self.table.buckets)
        for bucket in tqdm(buckets, desc="warm up", unit="program", disable=not progress):
            packed = np.tile(pack_padding(bucket, self.geometry), self.num_stages)
            np.asarray(self.runner.run_step(bucket, packed))

    def submit(self, schedule: Schedule) -> "JaxStepHandle":
        """Dispatch a step; returns at once. What goes wrong is raised by the handle, be it the device's fault or the host's. Raises: GroupError."""
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
        handle = JaxStepHandle(
            self, schedule, bucket, self._num_ticks + self.num_stages - 1, generation=self._num_lost_states
        )
        try:
            packed = pack(schedule, bucket, self.geometry, self._slots)
            for row in first_rows:
                self._set_slot(row)
            masks = [(row.batch_slot, row.token_mask) for row in schedule.rows if row.token_mask is not None]
            if masks:
                self.runner.set_masks(pack_masks(masks, self.geometry))
            self._tick(Microbatch(bucket, packed))
        except GroupError:
            raise
        except Exception as error:
            # At once: the next step may be submitted before this one's result is asked for.
            handle.error = error
            self.forget_state(handle.generation)
        return handle

    def close(self) -> None:
        self.runner.close()

    def read(self, tick: int) -> tuple[Bucket, np.ndarray]:
        """The words of a tick, and the bucket that they are laid out for; runs the ticks that are missing, and waits for it. To be called once a tick.

        Raises: JaxRuntimeError if it failed.
        """
        self._run_up_to(tick)
        bucket, out = self._outs.pop(tick)
        return bucket, np.asarray(out)

    def is_ready(self, tick: int) -> bool:
        """Whether the words of a tick are there; runs the ticks that are missing. Raises: JaxRuntimeError if one of those can't be dispatched."""
        self._run_up_to(tick)
        return self._outs[tick][1].is_ready()

    def _run_up_to(self, tick: int) -> None:
        while self._num_ticks <= tick:
            self._tick(None)

    @property
    def generation(self) -> int:
        """How often the state was given up."""
        return self._num_lost_states

    def is_lost(self, generation: int) -> bool:
        """Whether the state that a step ran on has been given up since."""
        return generation != self._num_lost_states

    def forget_state(self, generation: int) -> None:
        """A step failed and took the donated state with it: start again with an empty one, once for all steps that were in flight.

        Raises: EngineError if the device can't give even that.
        """
        if self.is_lost(generation):
            return
        self._num_lost_states += 1
        self._window.clear()
        self._outs.clear()
        try:
            self.runner.reset()
        except jax.errors.JaxRuntimeError as error:
            raise EngineError(
                f"After a failed step an empty KV cache must be made, got {str(error)[:500]}: start the engine again."
            ) from error

    def _tick(self, entering: Microbatch | None) -> None:
        tick = self._window.advance(entering)
        out = self.runner.run_step(tick.bucket, tick.packed)
        if self._window.oldest is not None:
            self._outs[self._num_ticks] = tick.bucket, out
        self._num_ticks += 1

    def _set_slot(self, row: ScheduledRow) -> None:
        """Set up the batch slot of a request that was just admitted, on the device if `full` steps serve it."""
        if self._slots.variants[row.batch_slot] == Variant.FULL:
            context = np.array(row.context_token_ids, np.int32)
            eos_token_ids = () if row.sampling.ignore_eos else self._eos_token_ids
            self.runner.set_slot(pack_slot(row.batch_slot, context, row.sampling, eos_token_ids, self.geometry))


class JaxStepHandle:
    """A step in flight. tick: the one that brings its tokens."""

    def __init__(
        self, executor: JaxExecutor, schedule: Schedule, bucket: Bucket, tick: int, *, generation: int
    ) -> None:
        self.bucket = bucket
        self.generation = generation
        self.error: Exception | None = None
        self._executor = executor
        self._schedule = schedule
        self._tick = tick

    def is_ready(self) -> bool:
        """Whether `result` would not have to wait."""
        if self.error is not None or self._executor.is_lost(self.generation):
            return True
        try:
            return self._executor.is_ready(self._tick)
        except jax.errors.JaxRuntimeError as error:  # of a tick that was missing; `result` tells of it
            self.error = error
            self._executor.forget_state(self.generation)
            return True

    def result(self) -> StepResult:
        """Wait for the step. Raises: EngineError if it failed, or one before it did and took its pages along; the KV cache is empty then."""
        try:
            if self.error is not None:
                raise self.error
            if self._executor.is_lost(self.generation):
                raise EngineError(
                    f"Step {self._schedule.step} must keep its KV pages, got a failure of a step before it."
                )
            bucket, words = self._executor.read(self._tick)
            return read_step_output(words, self._schedule, bucket)
        except EngineError:
            raise
        except Exception as error:
            said = str(error) if isinstance(error, jax.errors.JaxRuntimeError) else repr(error)
            self._executor.forget_state(self.generation)
            raise EngineError(
                f"Step {self._schedule.step} ({self.bucket.name}) must run to its end, got {said[:500]}: its requests are computed again."
            ) from error


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
        or sampling.structured is not None
    )
    if is_full:
        return Variant.FULL
    return Variant.GREEDY if sampling.is_greedy else Variant.SAMPLE
