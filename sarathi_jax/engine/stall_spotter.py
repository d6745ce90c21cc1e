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
        self._num_stages = scheduler.limits.num_microbatches
        self._live = live
        self._decoding: dict[int, int] = {}  # to the last step that was looked at and held it
        # Of the step before: its decodes, whoever else sampled in it, and those that it left out.
        self._decodes: Decodes | None = None
        self._sampled: Sequence[int] = ()
        self._left_out: Sequence[int] = ()

    def take(self, note: StepNote) -> Sequence[int]:
        """The requests that this step left out."""
        sampled = [request for _, request, _, _, does_sample in note.others if does_sample]
        goes_on = note.decodes is self._decodes and not self._sampled and not self._left_out and self._num_stages == 1
        self._decodes, self._sampled = note.decodes, sampled
        if goes_on:
            self._decoding.update(dict.fromkeys(sampled, note.step))
            return ()
        held = dict.fromkeys((*note.decodes.requests, *sampled), note.step)
        absent = {each: step for each, step in self._decoding.items() if each not in held and self._does_decode(each)}
        # Whoever is in a microbatch under way has its turn when that one is done.
        self._left_out = [each for each, step in absent.items() if note.step - step >= self._num_stages]
        self._decoding = held | absent
        return self._left_out

    def break_off(self) -> None:
        """A step failed: the next one is looked at, whatever it goes on with."""
        self._decodes = None

    def _does_decode(self, number: int) -> bool:
        """Whether a request that is not in a step still decodes, as far as is known."""
        request = self._live.get(number)
        if request is None or request.state is not RequestState.RUNNING or request.is_prefilling:
            return False
        return request.num_tokens < request.max_num_tokens
