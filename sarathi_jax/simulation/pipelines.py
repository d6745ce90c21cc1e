"""When a step's stages run: the time line of a device, or of a pipeline of them. Two kinds of pipelines:

    in series      each stage runs its next microbatch as soon as that has left the stage before: Sarathi-Serve's, and any engine's of one program a stage
    in lock step   all stages run one tick together, which is as long as the longest of them: this engine's one program over all stages

With one stage they are the same.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class Passage:
    """A microbatch on its way. stage_s: what each stage takes for it. ready_s: when it could begin. starts_s: when each stage began, as far as is known.
    done_s: when it has left the last one; None: not known yet."""

    stage_s: Sequence[float]
    ready_s: float
    starts_s: list[float] = field(default_factory=list)
    done_s: float | None = None


class Pipeline(Protocol):
    """Stages and their time line.

    idle_s: what stages waited between two microbatches, summed.
    """

    idle_s: float

    @property
    def free_s(self) -> float:
        """When the first stage can begin with another microbatch."""
        ...

    def enter(self, ready_s: float, stage_s: Sequence[float]) -> Passage:
        """A microbatch follows the one before it, from ready_s on at the earliest."""
        ...

    def done_s(self, passage: Passage) -> float:
        """When a microbatch has left, if nothing else is to enter before that is asked."""
        ...


class StagesInSeries:
    """Servers one behind the other, with room for microbatches that wait between them."""

    def __init__(self, num_stages: int) -> None:
        self._free_s = [0.0] * num_stages
        self._is_new = True
        self.idle_s = 0.0

    @property
    def free_s(self) -> float:
        return self._free_s[0]

    def enter(self, ready_s: float, stage_s: Sequence[float]) -> Passage:
        free_s, passage, leave_s = self._free_s, Passage(stage_s, ready_s), ready_s
        for stage, seconds in enumerate(stage_s):
            start_s = max(leave_s, free_s[stage])
            if not self._is_new:
                self.idle_s += start_s - free_s[stage]
            passage.starts_s.append(start_s)
            free_s[stage] = leave_s = start_s + seconds
        self._is_new = False
        passage.done_s = leave_s
        return passage

    def done_s(self, passage: Passage) -> float:
        assert passage.done_s is not None, "a microbatch's way through servers in series is known when it enters"
        return passage.done_s


class StagesInLockStep:
    """All stages tick together. A microbatch that is asked for drives itself out with empty ticks behind it."""

    def __init__(self, num_stages: int) -> None:
        self._inside: deque[Passage | None] = deque([None] * num_stages, maxlen=num_stages)  # the newest first
        self._is_new = True
        self._free_s = 0.0
        self.idle_s = 0.0

    @property
    def free_s(self) -> float:
        return self._free_s

    def enter(self, ready_s: float, stage_s: Sequence[float]) -> Passage:
        passage = Passage(stage_s, ready_s)
        if not self._is_new:
            self.idle_s += len(self._inside) * max(ready_s - self._free_s, 0.0)
        self._is_new = False
        self._free_s = max(self._free_s, ready_s)
        self._tick(passage)
        return passage

    def done_s(self, passage: Passage) -> float:
        while passage.done_s is None:
            self._tick(None)
        return passage.done_s

    def _tick(self, entering: Passage | None) -> None:
        self._inside.appendleft(entering)
        times_s = [0.0 if each is None else each.stage_s[stage] for stage, each in enumerate(self._inside)]
        for each in self._inside:
            if each is not None:
                each.starts_s.append(self._free_s)
        tick_s = max(times_s)
        self._free_s += tick_s
        self.idle_s += len(times_s) * tick_s - sum(times_s)
        leaving = self._inside[-1]
        if leaving is not None:
            leaving.done_s = self._free_s
