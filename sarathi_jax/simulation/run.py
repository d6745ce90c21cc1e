"""A simulated run: requests arrive, the production scheduler and the engine's loop serve them on a virtual clock, and when each token came is kept."""

from collections.abc import Sequence
from typing import Protocol, cast

from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.loop import StepLoop
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.token_output import TokenOutput
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.results import RequestTimes, SimulationResult
from sarathi_jax.simulation.simulated_executor import SimulatedExecutor
from sarathi_jax.simulation.workloads import RequestShape

NEVER_S = float("inf")


class Judge(Protocol):
    """Watches a run, and may find that going on can't change what it is to find out."""

    def is_decided(self, now_s: float, arrived: "Sequence[SimulatedRequest]", ended: "SimulatedRequest") -> bool:
        """A request ended. arrived: all that have, by arrival. Returns: whether the run may stop here."""
        ...


class SimulatedRequest(Request):
    """A request that remembers when its tokens came."""

    __slots__ = ("token_times_s",)

    def __init__(self, request_id: str, shape: RequestShape) -> None:
        length = shape.num_output_tokens
        sampling = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
        prompt = [0] * shape.num_prompt_tokens
        super().__init__(request_id, prompt, sampling, arrival_s=shape.arrival_s, seed=0, max_tokens=length)
        self.token_times_s: list[float] = []

    def times(self) -> RequestTimes:
        return RequestTimes(
            arrival_s=self.arrival_s,
            first_scheduled_s=self.first_scheduled_s,
            token_times_s=tuple(self.token_times_s),
            num_prompt_tokens=self.num_prompt_tokens,
            is_finished=self.is_finished,
            num_prefix_hit_tokens=self.num_prefix_hit_tokens,
            num_preemptions=self.num_preemptions,
        )


def simulate(deployment: Deployment, shapes: Sequence[RequestShape], judge: Judge | None = None) -> SimulationResult:
    """Serve requests until all have ended, or until the judge has seen enough.

    shapes: by arrival.
    Raises: RequestError if one of them can never be served.
    """
    return _Run(deployment, shapes, judge).run()


class _Run:
    def __init__(self, deployment: Deployment, shapes: Sequence[RequestShape], judge: Judge | None) -> None:
        self._clock = VirtualClock()
        self._scheduler = deployment.scheduler()
        self._pipeline = deployment.pipeline()
        host = deployment.cost_model.host
        self._executor = SimulatedExecutor(self._clock, deployment.cost_model.stages_s, host, self._pipeline)
        self._loop = StepLoop(self._scheduler, self._executor, self._clock, is_overlapped=deployment.is_overlapped)
        # An engine of one program a stage schedules the next microbatch when its first stage is free; lock step dispatches ahead.
        self._does_wait_for_stage = deployment.num_stages > 1 and not deployment.has_lock_step
        self._requests = [SimulatedRequest(str(index), shape) for index, shape in enumerate(shapes)]
        self._num_arrived = 0
        self._judge = judge
        self._is_decided = False

    def run(self) -> SimulationResult:
        num_requests, scheduler, loop = len(self._requests), self._scheduler, self._loop
        while not self._is_decided and (self._num_arrived < num_requests or not loop.is_idle):
            self._arrive()
            if loop.is_full:
                self._land()
            elif loop.is_idle:
                self._advance_to(self._next_arrival_s)
            elif not self._must_wait_for_stage():
                num_before = loop.num_in_flight
                if scheduler.has_unfinished:
                    self._take(loop.step(does_wait=False))
                if loop.num_in_flight == num_before:  # nothing that is here can run now
                    self._wait()
        return SimulationResult(
            [request.times() for request in self._requests],
            list(loop.records),
            self._clock.now(),
            self._pipeline.idle_s,
        )

    @property
    def _next_arrival_s(self) -> float:
        return self._requests[self._num_arrived].arrival_s if self._num_arrived < len(self._requests) else NEVER_S

    def _arrive(self) -> None:
        now_s = self._clock.now()
        while self._next_arrival_s <= now_s:
            self._scheduler.add(self._requests[self._num_arrived])
            self._num_arrived += 1

    def _must_wait_for_stage(self) -> bool:
        """Wait for the first stage, taking in what is done before. Returns: False if it is free now."""
        free_s = self._pipeline.free_s
        if not self._does_wait_for_stage or free_s <= self._clock.now():
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
        if self._next_arrival_s < done_s:
            self._advance_to(self._next_arrival_s)
        else:
            self._land()

    def _land(self) -> None:
        self._take(self._loop.step(does_launch=False))

    def _advance_to(self, time_s: float) -> None:
        self._clock.advance(max(time_s - self._clock.now(), 0.0))

    def _take(self, outputs: Sequence[TokenOutput]) -> None:
        now_s = self._loop.completed_s
        requests = cast("list[SimulatedRequest]", [output[0] for output in outputs])
        for request in requests:
            request.token_times_s.append(now_s)
        if self._judge is not None:
            arrived = self._requests[: self._num_arrived]
            for request in requests:
                if request.finish_reason is not None:
                    self._is_decided |= self._judge.is_decided(now_s, arrived, request)
