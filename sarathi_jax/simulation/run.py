"""A simulated run: requests arrive, the production scheduler and the engine's loop serve them on a virtual clock, and when each token came is kept."""

import gc
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Protocol, cast

from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.loop import StepLoop
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import ScheduledRow
from sarathi_jax.scheduling.service_levels import INTERACTIVE
from sarathi_jax.scheduling.token_output import StepOutputs, TokenOutput
from sarathi_jax.simulation.arrivals import ArrivalQueue
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.results import RequestTimes, SimulationResult
from sarathi_jax.simulation.simulated_executor import Observer, SimulatedExecutor
from sarathi_jax.simulation.token_ids import TokenIds
from sarathi_jax.simulation.workloads import RequestShape


class Judge(Protocol):
    """Watches a run, and may find that going on can't change what it is to find out."""

    def is_decided(self, now_s: float, arrived: "Sequence[SimulatedRequest]", ended: "SimulatedRequest") -> bool:
        """A request ended. arrived: all that have, by arrival. Returns: whether the run may stop here."""
        ...


@lru_cache(maxsize=8192)
def _sampling(num_output_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_output_tokens, ignore_eos=True)


class SimulatedRequest(Request):
    """A request that remembers when its tokens came."""

    __slots__ = ("token_times_s",)

    def __init__(self, place: int, shape: RequestShape, prompt: Sequence[int], arrival_s: float) -> None:
        length = shape.num_output_tokens
        sampling = _sampling(length)
        super().__init__(
            str(place),
            prompt,
            sampling,
            arrival_s=arrival_s,
            seed=0,
            max_tokens=length,
            slo_class=shape.slo_class or INTERACTIVE,
            client=shape.client_id,
        )
        self.token_times_s = array("d")

    def times(self) -> RequestTimes:
        return RequestTimes(
            arrival_s=self.arrival_s,
            first_scheduled_s=self.first_scheduled_s,
            token_times_s=self.token_times_s,
            num_prompt_tokens=self.num_prompt_tokens,
            is_finished=self.is_finished,
            num_prefix_hit_tokens=self.num_prefix_hit_tokens,
            num_preemptions=self.num_preemptions,
        )


def simulate(
    deployment: Deployment,
    shapes: Sequence[RequestShape],
    judge: Judge | None = None,
    observer: Observer | None = None,
) -> SimulationResult:
    """Serve requests until all have ended, or until the judge has seen enough.

    With a prefix cache, prompts and outputs are those of `TokenIds`, so that the rounds of a conversation find what they share; without one they are all alike.
    observer: is shown every step as it is dispatched.
    Raises: RequestError if one of them can never be served.
    """
    with _no_search_for_cycles():
        return _Run(deployment, shapes, judge, observer).run()


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """A run makes millions of objects, and none that refers to itself: the collector would look at them again and again, and find nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _token_of(token_ids: TokenIds, row: ScheduledRow) -> int:
    """What a row samples. No method of a run, which would then refer to itself."""
    return token_ids.output_at(int(row.request_id), row.num_output_tokens)


class _TokenTimes:
    """When decodes got their tokens, kept once while they stay the same."""

    def __init__(self) -> None:
        self._decodes: Sequence[Request] = ()
        self._times_s = array("d")

    def add(self, decodes: Sequence[Request], now_s: float) -> None:
        """Each of these got a token."""
        if decodes is not self._decodes:
            self.hand_out()
            self._decodes = decodes
        self._times_s.append(now_s)

    def hand_out(self) -> None:
        """All requests remember what has come to them."""
        for request in cast("Sequence[SimulatedRequest]", self._decodes):
            request.token_times_s += self._times_s
        self._times_s = array("d")


class _Run:
    def __init__(
        self,
        deployment: Deployment,
        shapes: Sequence[RequestShape],
        judge: Judge | None,
        observer: Observer | None,
    ) -> None:
        self._clock = VirtualClock()
        self._scheduler = deployment.scheduler()
        self._pipeline = deployment.pipeline()
        model = deployment.cost_model
        self._token_ids = TokenIds(shapes, model.model.vocab_size) if deployment.is_prefix_caching else None
        self._executor = SimulatedExecutor(
            self._clock,
            model.stages_s,
            model.host,
            self._pipeline,
            token_of=None if self._token_ids is None else partial(_token_of, self._token_ids),
            observer=observer,
        )
        self._loop = StepLoop(
            self._scheduler, self._executor, self._clock, is_overlapped=deployment.is_overlapped, max_records=None
        )
        # An engine of one program a stage schedules the next microbatch when its first stage is free; lock step dispatches ahead.
        self._does_wait_for_stage = deployment.num_stages > 1 and not deployment.has_lock_step
        self._shapes = shapes
        self._arrivals = ArrivalQueue(shapes)
        self._arrived: list[SimulatedRequest] = []
        self._judge = judge
        self._is_decided = False
        self._times = _TokenTimes()

    def run(self) -> SimulationResult:
        scheduler, loop = self._scheduler, self._loop
        while not self._is_decided:
            self._arrive()
            if loop.is_full:
                self._land()
            elif loop.is_idle:
                if not self._arrivals:
                    break
                self._advance_to(self._arrivals.next_arrival_s)
            elif not self._must_wait_for_stage():
                # With nothing in flight a step is begun; nobody arrives before it is done if it is the only one that may be.
                num_before = loop.num_in_flight
                if scheduler.has_unfinished:
                    self._take(loop.step(does_wait=not num_before))
                if num_before and loop.num_in_flight == num_before:  # nothing that is here can run now
                    self._wait()
        return SimulationResult(
            [request.times() for request in self._arrived],
            list(loop.records),
            self._clock.now(),
            self._pipeline.idle_s,
            num_absent=len(self._shapes) - len(self._arrived),
        )

    def _arrive(self) -> None:
        now_s, arrivals = self._clock.now(), self._arrivals
        while arrivals.next_arrival_s <= now_s:
            arrival_s, place = arrivals.pop()
            shape, token_ids = self._shapes[place], self._token_ids
            prompt = [0] * shape.num_prompt_tokens if token_ids is None else token_ids.prompt(place)
            request = SimulatedRequest(place, shape, prompt, arrival_s)
            self._scheduler.add(request, are_ids_known=True)
            self._arrived.append(request)

    def _must_wait_for_stage(self) -> bool:
        """Wait for the first stage, taking in what is done before. Returns: False if it is free now."""
        if not self._does_wait_for_stage or (free_s := self._pipeline.free_s) <= self._clock.now():
            return False
        done_s = self._executor.oldest_done_s
        if done_s is not None and done_s <= free_s:
            self._land()
        else:
            self._advance_to(free_s)
        return True

    def _wait(self) -> None:
        """Until somebody arrives, or the oldest step is done."""
        done_s = self._executor.oldest_done_s
        assert done_s is not None, "a request that waits while nothing runs is admitted"
        if self._arrivals.next_arrival_s < done_s:
            self._advance_to(self._arrivals.next_arrival_s)
        else:
            self._land()

    def _land(self) -> None:
        self._take(self._loop.step(does_launch=False))

    def _advance_to(self, time_s: float) -> None:
        self._clock.advance(max(time_s - self._clock.now(), 0.0))

    def _take(self, outputs: Sequence[TokenOutput]) -> None:
        if not isinstance(outputs, StepOutputs):
            return  # nothing came
        now_s, ended = self._loop.completed_s, outputs.ended
        self._times.add(outputs.decodes, now_s)
        for request in cast("Sequence[SimulatedRequest]", outputs.readers):
            request.token_times_s.append(now_s)
        if ended:
            self._times.hand_out()
        for output in ended:
            request = cast("SimulatedRequest", output.request)
            self._arrivals.end(int(request.request_id), now_s)
            if self._judge is not None:
                self._is_decided |= self._judge.is_decided(now_s, self._arrived, request)
