"""Stalls, seen as they happen: which running decodes a step left out (docs/metrics.md). A step that just goes on with those before it is not looked at."""

from collections.abc import Mapping, Sequence

from sarathi_jax.engine.step_notes import Decodes, StepNote
from sarathi_jax.scheduling.request import Request, RequestState
from sarathi_jax.scheduling.scheduler import Scheduler


class StallSpotter:
    """Takes the notes of all steps of a scheduler, each before the next one is planned.

    live: the requests that have not ended, by the numbers that notes give them; the caller keeps it.
    """

    def __init__(self, scheduler: Scheduler, live: Mapping[int, Request]) -> None:
        self._scheduler = scheduler
        self._live = live
        self._decoding: set[int] = set()
        # Of the step before: its decodes, whoever else sampled in it, and those that it left out.
        self._decodes: Decodes | None = None
        self._sampled: Sequence[int] = ()
        self._left_out: Sequence[int] = ()

    def take(self, note: StepNote) -> Sequence[int]:
        """The requests that this step left out."""
        sampled = [request for _, request, _, _, does_sample in note.others if does_sample]
        goes_on = note.decodes is self._decodes and not self._sampled and not self._left_out
        self._decodes, self._sampled = note.decodes, sampled
        if goes_on:
            self._decoding.update(sampled)
            return ()
        samples = {*note.decodes.requests, *sampled}
        self._left_out = [number for number in self._decoding - samples if self._could_run(number)]
        self._decoding = samples.union(self._left_out)
        return self._left_out

    def break_off(self) -> None:
        """A step failed: the next one is looked at, whatever it goes on with."""
        self._decodes = None

    def _could_run(self, number: int) -> bool:
        """Whether a request that no step holds any more still decodes, and was not left out for a reason of its own."""
        request = self._live.get(number)
        if request is None or request.state is not RequestState.RUNNING or request.is_prefilling:
            return False
        limits = self._scheduler.limits
        is_under_way = limits.num_microbatches > 1 and self._scheduler.is_in_flight(request)
        return request.num_remaining_tokens > 0 and not is_under_way
