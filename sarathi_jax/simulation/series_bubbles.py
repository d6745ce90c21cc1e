"""Where the stages of a pipeline in series are idle, and why, by the kinds in `bubbles`: from the time line of a simulated run.

A stage has run one microbatch and waits for the next. The first stage waits for the oldest in flight, as no more may be under way than there are stages; then, if
that has left, for somebody to run; then for host code. A later stage waits because the stage before takes longer for the next microbatch than it took itself for the
one it has run; what it waits beyond that, the stage before has waited too, and for the same reasons. Where a stage waits for a microbatch, it is for what that has
more of than the one it has run.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sarathi_jax.simulation.bubbles import Bubbles, Price, idle_beside
from sarathi_jax.simulation.hardware import HostCost
from sarathi_jax.simulation.microbatches import Microbatch
from sarathi_jax.simulation.step_work import StepWork


def series_bubbles(
    microbatches: Sequence[Microbatch], num_stages: int, host: HostCost, price: Price, max_in_flight: int | None = None
) -> list[Bubbles]:
    """For each microbatch, how long stages worked on it, and how long and why they had waited for it.

    Args:
      microbatches: all of a run, in their order.
      price: what a stage takes for a step; all stages are alike.
      max_in_flight: microbatches under way at a time; None: as many as there are stages.
    """
    limit = num_stages if max_in_flight is None else max_in_flight
    found: list[Bubbles] = []
    for index, each in enumerate(microbatches):
        total = Bubbles(busy_s=sum(each.passage.stage_s))
        if index:
            before, oldest = microbatches[index - 1], microbatches[index - limit] if index >= limit else None
            gap = _first_gap(before, each, oldest, host, price)
            total += gap
            for stage in range(1, num_stages):
                gap = _later_gap(stage, before, each, gap, price)
                total += gap
        found.append(total)
    return found


def request_bubbles_s(microbatches: Sequence[Microbatch], bubbles: Sequence[Bubbles]) -> np.ndarray:
    """f64[requests]: how long stages waited for the microbatches that a request was in because they differ from those before: the bubble time of a request
    of SARATHI (arXiv 2308.16369, section 5.3)."""
    seconds = defaultdict[str, float](float)
    for each, bubble in zip(microbatches, bubbles, strict=True):
        for request_id in each.request_ids:
            seconds[request_id] += bubble.uneven_s
    return np.array(list(seconds.values()))


def _first_gap(
    before: Microbatch, each: Microbatch, oldest: Microbatch | None, host: HostCost, price: Price
) -> Bubbles:
    """What the first stage waits for between two microbatches."""
    from_s, to_s = before.end_s(0), each.passage.starts_s[0]
    if to_s <= from_s:
        return Bubbles()
    dispatched_s = each.passage.ready_s - host.seconds(each.work.num_rows)
    oldest_left_s = from_s if oldest is None or oldest.passage.done_s is None else oldest.passage.done_s
    first_s = min(max(oldest_left_s, from_s), to_s)
    second_s = min(max(dispatched_s, first_s), to_s)
    total = Bubbles(empty_s=second_s - first_s, host_s=to_s - second_s)
    return total if oldest is None else total + _beside(before.work, oldest.work, first_s - from_s, price)


def _later_gap(stage: int, before: Microbatch, each: Microbatch, gap_before: Bubbles, price: Price) -> Bubbles:
    """The same of a later stage. gap_before: of the stage before it."""
    gap_s = max(each.passage.starts_s[stage] - before.end_s(stage), 0.0)
    longer_s = min(max(each.passage.stage_s[stage - 1] - before.passage.stage_s[stage], 0.0), gap_s)
    total = _beside(before.work, each.work, longer_s, price)
    if gap_s > longer_s and gap_before.idle_s:
        total += gap_before.scaled((gap_s - longer_s) / gap_before.idle_s)
    return total


def _beside(done: StepWork, longer: StepWork, idle_s: float, price: Price) -> Bubbles:
    return idle_beside(done, price(done), longer, price(longer), idle_s) if idle_s else Bubbles()
