"""Several engines as one: each request goes to the one that has the fewest, and runs there alone. They share nothing but the host's thread."""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sarathi_jax.engine.engine import Engine, Prompt
from sarathi_jax.engine.records import StepRecord
from sarathi_jax.errors import RequestError
from sarathi_jax.outputs import StreamEvent
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.constraint import Constraint
from sarathi_jax.scheduling.service_levels import INTERACTIVE

POLL_S = 5e-5


class EngineReplicas:
    """Engines of one model, as an `Engine`. Not safe to share between threads.

    engines: at least one, on devices of their own, over one clock. records: of all of them, in the order in which steps ended.
    seed: what seeds are drawn from for requests that bring none, whichever engine runs them.
    """

    def __init__(self, engines: Sequence[Engine], *, seed: int = 0) -> None:
        self.engines = tuple(engines)
        self.clock = engines[0].clock
        self.records: deque[StepRecord] = engines[0].records
        for engine in engines[1:]:
            engine.loop.records = self.records
        self._seeds = np.random.default_rng(seed)
        self._numbers = itertools.count()
        self._places: dict[str, Engine] = {}
        self._held_events: list[StreamEvent] = []

    @property
    def has_unfinished(self) -> bool:
        return bool(self._held_events) or any(engine.has_unfinished for engine in self.engines)

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        arrival_s: float | None = None,
        cache_salt: str = "",
        slo_class: str = INTERACTIVE,
        client: str = "",
        priority: int = 0,
        output_token_ids: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> str:
        """Queue a request with the engine that has the fewest. Args, returns, raises: as `Engine.add_request`."""
        request_id = request_id or self._new_id()
        if request_id in self._places:
            raise RequestError(
                f"request_id={request_id!r} is in use by a request that has not ended. Choose another id.",
                param="request_id",
            )
        params = params or SamplingParams()
        if params.seed is None and not output_token_ids:  # who goes on has to bring the seed that it had
            params = replace(params, seed=int(self._seeds.integers(2**63)))
        engine = min(self.engines, key=lambda each: each.scheduler.num_running + each.scheduler.num_waiting)
        added = engine.add_request(
            prompt,
            params,
            request_id=request_id,
            arrival_s=arrival_s,
            cache_salt=cache_salt,
            slo_class=slo_class,
            client=client,
            priority=priority,
            output_token_ids=output_token_ids,
            constraint=constraint,
        )
        self._places[added] = engine
        return added

    def abort(self, request_id: str) -> list[StreamEvent]:
        """As `Engine.abort`."""
        engine = self._places.pop(request_id, None)
        return [] if engine is None else engine.abort(request_id)

    def end_sample(self, request_id: str, sample_index: int) -> list[StreamEvent]:
        """As `Engine.end_sample`."""
        engine = self._places.get(request_id)
        events = [] if engine is None else engine.end_sample(request_id, sample_index)
        if any(event.output is not None for event in events):
            del self._places[request_id]
        return events

    def step(self) -> list[StreamEvent]:
        """Run a turn of every engine that need not wait for its devices, so that none holds up another. Returns, raises: as `Engine.step`.

        What the others brought in a turn in which one raised comes with the next turn.
        """
        if self._held_events:
            events, self._held_events = self._held_events, []
            return events
        events = []
        try:
            for engine in self.engines:
                if engine.has_unfinished:
                    events += engine.step(does_wait=False)
        except BaseException:
            self._held_events = events
            raise
        finally:
            for event in events:
                if event.output is not None:
                    self._places.pop(event.request_id, None)
        if not events:
            time.sleep(POLL_S)
        return events

    def close(self) -> None:
        """As `Engine.close`, of each, whatever becomes of the others."""
        with contextlib.ExitStack() as stack:
            for engine in self.engines:
                stack.callback(engine.close)

    def _new_id(self) -> str:
        """One that no live request has."""
        return next(name for number in self._numbers if (name := f"request-{number}") not in self._places)


type AnyEngine = Engine | EngineReplicas
