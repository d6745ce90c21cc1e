"""An executor that fails on purpose, at the points that `sarathi_jax.faults` names. It stands before the real one, which knows nothing of it, nor does the loop."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from sarathi_jax.engine.executor import Executor, StepHandle, StepShape
from sarathi_jax.errors import EngineError
from sarathi_jax.faults import Fault
from sarathi_jax.scheduling.schedule import Schedule, StepResult

NO_TOKEN = 2**31 - 1  # above any vocabulary


class FragileExecutor(Executor, Protocol):
    """An executor whose KV pages can be lost."""

    @property
    def generation(self) -> int:
        """Counts how often they were."""
        ...

    def forget_state(self, generation: int) -> None:
        """Make them new and empty, unless they were lost since this generation; steps in flight are lost too."""
        ...


class FaultyExecutor:
    """Passes steps on, and has some of them fail. sleep: waits; a test's own does not."""

    def __init__(
        self, executor: FragileExecutor, faults: Sequence[Fault], *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.executor = executor
        self.faults = tuple(faults)
        self.sleep = sleep
        self._poison = {fault.token for fault in faults if fault.point == "step.poison"}
        self._poisonous: set[str] = set()
        self._num_steps = 0

    def submit(self, schedule: Schedule) -> "FaultyHandle":
        number, self._num_steps = self._num_steps, self._num_steps + 1
        struck = [fault for fault in self.faults if fault.strikes(number)]
        points = {fault.point for fault in struck}
        if "engine.kill9" in points:
            os.kill(os.getpid(), signal.SIGKILL)
        if "engine.exit" in points:
            os._exit(1)
        does_reach_device = "step.raise.before" not in points
        does_fail = not does_reach_device or "step.raise.after_donate" in points
        does_fail = (self._is_poisonous(schedule) and "step.poison" in points) or does_fail
        generation = self.executor.generation
        inner = self.executor.submit(schedule) if does_reach_device else None
        return FaultyHandle(self, inner, struck, number, generation if does_fail else None)

    def close(self) -> None:
        self.executor.close()

    def _is_poisonous(self, schedule: Schedule) -> bool:
        """Whether a request of the step has a prompt that begins with one of the tokens."""
        for row in schedule.rows:
            if row.is_first:
                tokens = row.context_token_ids or row.token_ids or [-1]
                does_begin = tokens[0] in self._poison
                (self._poisonous.add if does_begin else self._poisonous.discard)(row.request_id)
        return any(row.request_id in self._poisonous for row in schedule.rows)


class FaultyHandle:
    """A step in flight that may be made to fail. inner: None: it never reaches the device. loses: the KV pages that it takes with it; None: it does not fail."""

    def __init__(
        self, owner: FaultyExecutor, inner: StepHandle | None, struck: Sequence[Fault], number: int, loses: int | None
    ) -> None:
        self._owner = owner
        self._inner = inner
        self._struck = struck
        self._number = number
        self._loses = loses
        seconds = sum(fault.seconds for fault in struck)
        self._done_s = time.monotonic() + seconds if seconds else 0.0

    @property
    def bucket(self) -> StepShape:
        assert self._inner is not None, "a step that failed has no shape"
        return self._inner.bucket

    def is_ready(self) -> bool:
        return (self._inner is None or self._inner.is_ready()) and time.monotonic() >= self._done_s

    def result(self) -> StepResult:
        """As the step's own, but for what is made of it. Raises: EngineError where it is made to fail; the KV cache is empty then."""
        if self._done_s:
            self._owner.sleep(max(self._done_s - time.monotonic(), 0.0))
        result = None if self._inner is None else self._inner.result()
        if result is None or self._loses is not None:
            assert self._loses is not None, "a step that does not reach the device fails"
            self._owner.executor.forget_state(self._loses)
            raise EngineError(f"Step {self._number} must run, got a fault on purpose: unset SARATHI_JAX_FAULTS.")
        for fault in self._struck:
            result = _spoilt(result, fault)
        return result


def _spoilt(result: StepResult, fault: Fault) -> StepResult:
    num_rows = len(result.token_ids)
    row = fault.row % num_rows
    if fault.point == "step.nan_all":
        return result._replace(is_finite=[False] * num_rows)
    if fault.point == "step.nan_row":
        is_finite = list(result.is_finite or [True] * num_rows)
        is_finite[row] = False
        return result._replace(is_finite=is_finite)
    if fault.point == "step.oob_token":
        token_ids = [*result.token_ids[:row], NO_TOKEN, *result.token_ids[row + 1 :]]
        return result._replace(token_ids=token_ids, are_ids_known=False)
    return result
