"""The port between the engine and whatever runs a step: the JAX executor, the simulator, or a test's fake. Knows nothing of jax."""

from typing import Protocol

from sarathi_jax.scheduling.schedule import Schedule, StepResult


class StepShape(Protocol):
    """The fixed shape that a step was padded to."""

    @property
    def name(self) -> str: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_rows(self) -> int: ...


class StepHandle(Protocol):
    """A step in flight."""

    @property
    def bucket(self) -> StepShape: ...

    def is_ready(self) -> bool:
        """Whether `result` would not have to wait."""
        ...

    def result(self) -> StepResult:
        """Block until the step is done. Raises: EngineError if it failed; the KV cache is then lost and has been made anew, empty."""
        ...


class Executor(Protocol):
    """Runs schedules in the order they are submitted. A step may be submitted while the one before is in flight."""

    def submit(self, schedule: Schedule) -> StepHandle: ...

    def close(self) -> None:
        """Release what it holds; idempotent."""
        ...
