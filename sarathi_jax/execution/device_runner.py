"""What runs on devices: an engine's programs over its parameters and the state between steps. Knows nothing of schedules: what comes in are packed arrays."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from sarathi_jax.execution.buckets import Bucket
from sarathi_jax.execution.device_state import DeviceState
from sarathi_jax.execution.programs import Programs


class StepWords(Protocol):
    """A step's words, as `step_output` reads them, on their way to the host; a `jax.Array` is one."""

    def is_ready(self) -> bool:
        """Whether they are there."""
        ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Wait for the step. Raises: JaxRuntimeError if it failed."""
        ...


class Runner(Protocol):
    """Takes an executor's calls in order. What runs on the device is only dispatched: each call returns at once."""

    def run_step(self, bucket: Bucket, packed: np.ndarray) -> StepWords:
        """Dispatch a step.

        Args:
          packed: i32, as `packing.pack` lays a schedule out for this bucket.
        Returns: the step's words, as `step_output` reads them. `np.asarray` of it waits for the step, and raises JaxRuntimeError if it failed.
        Raises: JaxRuntimeError if it can't be dispatched. After either the state is lost: call `reset`.
        """
        ...

    def set_slot(self, packed: np.ndarray) -> None:
        """Set up a batch slot. packed: i32, as `device_state.pack_slot` lays it out. Raises: as `run_step`."""
        ...

    def set_masks(self, packed: np.ndarray) -> None:
        """Say which tokens some slots' next steps may sample. packed: i32, as `device_state.pack_masks` lays it out. Raises: as `run_step`."""
        ...

    def reset(self) -> None:
        """Make the state anew: empty pages, idle slots. Does nothing once closed. Raises: JaxRuntimeError if the device can't give even that."""
        ...

    def close(self) -> None:
        """Release what it holds on devices; idempotent."""
        ...


class LocalRunner:
    """The `Runner` over this process's share of the devices.

    Args:
      params: the model's flat tuple.
    """

    def __init__(self, programs: Programs, params: Sequence[jax.Array]) -> None:
        self.programs = programs
        self.state: DeviceState | None = programs.make_state()
        self._params = tuple(params)

    def run_step(self, bucket: Bucket, packed: np.ndarray) -> StepWords:
        assert self.state is not None, "the runner is closed"
        self.state, out = self.programs.steps[bucket](self._params, self.state, packed)
        out.copy_to_host_async()
        return out

    def set_slot(self, packed: np.ndarray) -> None:
        assert self.state is not None, "the runner is closed"
        self.state = self.state._replace(slots=self.programs.set_slot(self.state.slots, packed))

    def set_masks(self, packed: np.ndarray) -> None:
        assert self.state is not None, "the runner is closed"
        program = self.programs.set_masks[len(packed)]
        self.state = self.state._replace(slots=program(self.state.slots, packed))

    def reset(self) -> None:
        if self.state is not None:
            self.state = self.programs.make_state()

    def close(self) -> None:
        self.state, self._params = None, ()
