"""Where the stages of a pipeline are idle, and why: the bubbles of Sarathi-Serve (arXiv 2403.02310, section 3.3), told apart.

In a tick every stage runs one microbatch, and the tick is as long as the longest of them. A stage that has less to do waits for the rest of it:

    PB1   it and the longest both have prefill tokens, and not as many
    PB2   one of them has prefill tokens, and the other has only decodes
    PB3   decodes attend to contexts that differ, or are not as many
    empty the stage has no microbatch at all

Which of them that are is told apart here for a pipeline in lock step, and in `series_bubbles` for one whose stages run in series.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from sarathi_jax.simulation.cost_model import StageCost
from sarathi_jax.simulation.hardware import HostCost
from sarathi_jax.simulation.microbatches import Microbatch
from sarathi_jax.simulation.step_work import StepWork

Price = Callable[[StepWork], StageCost]


@dataclass(frozen=True, slots=True)
class Bubbles:
    """Seconds, summed over stages. busy_s: of stages that work; the others: idle, by their reason; host_s: while host code makes a step ready."""

    busy_s: float = 0.0
    prefill_size_s: float = 0.0
    prefill_decode_s: float = 0.0
    decode_context_s: float = 0.0
    empty_s: float = 0.0
    host_s: float = 0.0

    @property
    def uneven_s(self) -> float:
        """Idle because microbatches differ: PB1, PB2 and PB3."""
        return self.prefill_size_s + self.prefill_decode_s + self.decode_context_s

    @property
    def idle_s(self) -> float:
        return self.uneven_s + self.empty_s + self.host_s

    @property
    def idle_share(self) -> float:
        """Of all stages' time, from 0 to 1."""
        total = self.busy_s + self.idle_s
        return self.idle_s / total if total else 0.0

    def __add__(self, other: "Bubbles") -> "Bubbles":
        return Bubbles(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def scaled(self, factor: float) -> "Bubbles":
        return Bubbles(*(factor * getattr(self, each.name) for each in fields(self)))


def lock_step_bubbles(microbatches: Sequence[Microbatch], num_stages: int, host: HostCost, price: Price) -> Bubbles:
    """The bubbles of a simulated run, from its first tick to its last.

    Args:
      microbatches: all of the run, in their order.
      price: what a stage takes for a step; all stages are alike.
    """
    ticks: dict[float, list[Microbatch]] = {}
    for each in microbatches:
        for start_s in each.passage.starts_s:
            ticks.setdefault(start_s, []).append(each)
    total, end_s = Bubbles(), min(ticks, default=0.0)
    for start_s in sorted(ticks):
        inside = ticks[start_s]
        if start_s > end_s:  # all have waited for the one that enters
            dispatched_s = inside[-1].passage.ready_s - host.seconds(inside[-1].work.num_rows)
            until_s = min(max(dispatched_s, end_s), start_s)
            total += Bubbles(empty_s=num_stages * (until_s - end_s), host_s=num_stages * (start_s - until_s))
        total += tick_bubbles([*(each.work for each in inside), *[None] * (num_stages - len(inside))], price)
        end_s = start_s + max(each.passage.stage_s[each.passage.starts_s.index(start_s)] for each in inside)
    return total


def tick_bubbles(steps: Iterable[StepWork | None], price: Price) -> Bubbles:
    """The bubbles of one tick. steps: what each stage runs."""
    costs = [(step, None if step is None else price(step)) for step in steps]
    busy = [(step, cost) for step, cost in costs if step is not None and cost is not None]
    if not busy:
        return Bubbles()
    longest, longest_cost = max(busy, key=lambda each: each[1].seconds)
    total = Bubbles(empty_s=(len(costs) - len(busy)) * longest_cost.seconds)
    for step, cost in busy:
        idle_s = longest_cost.seconds - cost.seconds
        total += Bubbles(busy_s=cost.seconds) + idle_beside(step, cost, longest, longest_cost, idle_s)
    return total


def idle_beside(step: StepWork, cost: StageCost, longest: StepWork, longest_cost: StageCost, idle_s: float) -> Bubbles:
    """Why a stage that has run a step waits so long for one that runs a longer step."""
    if bool(step.chunks) != bool(longest.chunks):
        return Bubbles(prefill_decode_s=idle_s)
    if not step.chunks:
        return Bubbles(decode_context_s=idle_s)
    # Both have prefills: what decodes' attention does not explain is the prefills'. Where one of the two is shorter, the other explains it all.
    context_s = min(max(longest_cost.attention_decode_s - cost.attention_decode_s, 0.0), idle_s)
    return Bubbles(prefill_size_s=idle_s - context_s, decode_context_s=context_s)
