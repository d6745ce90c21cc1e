"""The engine process: takes requests from the front, runs steps, sends tokens back. One thread: what came is read between two steps; only
constraints, and why tokens came late, are made in threads beside it.

Started by the front as `python -m sarathi_jax.serve.engine_process SOCKET`. It ends when the front says so, or goes; a failure of the engine ends it with code 1,
options or a model that can't be with code 2, as commands do.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sarathi_jax.config import EngineConfig
from sarathi_jax.cpu_defaults import claim_process
from sarathi_jax.errors import EngineError, ModelError, RequestError, SarathiError
from sarathi_jax.gpu_defaults import apply_defaults, import_jax_quietly
from sarathi_jax.outputs import StreamEvent
from sarathi_jax.serve.constraint_queue import ConstraintQueue
from sarathi_jax.serve.explainer import Explainer
from sarathi_jax.serve.garbage import freeze_garbage
from sarathi_jax.serve.link import EngineLink, LinkError
from sarathi_jax.serve.log import logging_to
from sarathi_jax.serve.messages import (
    Abort,
    Add,
    Done,
    Ended,
    EndSample,
    EngineFacts,
    Found,
    Ready,
    Refused,
    Start,
    Stop,
    ToEngine,
    TokenEvent,
    Tokens,
    Watch,
)
from sarathi_jax.serve.step_report import StepReporter

if TYPE_CHECKING:
    from sarathi_jax.checkpoints.model_source import ModelSource
    from sarathi_jax.engine.replicas import AnyEngine
    from sarathi_jax.scheduling.constraint import Constraint
    from sarathi_jax.started_engine import StartedEngine

IDLE_WAIT_S = 0.5
ASIDE_WAIT_S = 1e-3  # while another thread makes something
PR_SET_PDEATHSIG = 1


def main(path: str) -> int:
    """Be the engine of the front that listens there. Returns: the exit code."""
    end_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # what the front asks for when a step hangs
    link = EngineLink(path)
    try:
        start = next(message for message in iter_messages(link) if isinstance(message, Start))
        with logging_to(*log_options(start)):
            started = start_engine(start, link)
            try:
                Session(started, link).run()
            finally:
                started.close()
        return 0
    except LinkError:
        return 0  # nobody is left to tell
    except SarathiError as error:
        tell_end(link, str(error))
        return 1 if isinstance(error, EngineError) else 2
    except Exception as error:
        tell_end(link, f"a fault of the engine process: {error!r}")
        raise


def log_options(start: Start) -> tuple[Any, Any]:
    """Format and level of the engine's log, which says only what is wrong, unless it is asked for more."""
    return start.log_format, "warning" if start.log_level == "info" else start.log_level


def tell_end(link: EngineLink, message: str) -> None:
    with contextlib.suppress(LinkError):
        link.send(Ended(" ".join(message.split())))


def end_with_parent() -> None:
    """The kernel kills this process when its parent dies, whatever it is doing: nobody else would."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be asked for
            sys.exit(1)


def iter_messages(link: EngineLink) -> Iterator[ToEngine]:
    while True:
        yield from link.poll(IDLE_WAIT_S)


def start_engine(start: Start, link: EngineLink) -> "StartedEngine":
    """Load and compile. Raises: SarathiError."""
    config = EngineConfig(**start.options)
    apply_defaults()
    import_jax_quietly()
    claim_process()
    from sarathi_jax.started_engine import StartedEngine  # now that jax has been told where to run

    def found(source: "ModelSource") -> None:
        link.send(Found(None if source.folder is None else str(source.folder)))

    # The front has checked each grammar before it comes here.
    started = StartedEngine(config, progress=start.progress, found=found, has_grammar_checker=False)
    if started.constraints is not None:
        with contextlib.suppress(RequestError, ModelError):  # told to whoever asks for structured output
            started.constraints.prepare()
    freeze_garbage()
    link.send(Ready(engine_facts(started)))
    return started


def engine_facts(started: "StartedEngine") -> EngineFacts:
    import jax

    config, plan, ledger = started.config, started.programs.plan, started.compile_ledger
    return EngineFacts(
        model=Path(config.model).name if Path(config.model).is_dir() else config.model,
        limits=started.engines[0].scheduler.limits,
        policy=config.policy,
        eos_token_ids=list(started.source.config.eos_token_ids),
        devices=[device.device_kind for device in jax.devices()],
        mesh=config.mesh,
        dtype=str(started.programs.model_state.dtype),
        memory=plan.describe(),
        weight_bytes=plan.weight_bytes,
        kv_bytes=plan.kv_bytes,
        tbt_slo_ms=config.tbt_slo_ms,
        num_replicas=len(started.engines),
        num_programs=len(ledger.entries),
        num_cache_hits=ledger.num_cache_hits,
        compile_s=sum(entry.seconds for entry in ledger.entries),
    )


class Session:
    """The engine's life between ready and end."""

    def __init__(self, started: "StartedEngine", link: EngineLink) -> None:
        self._engine: AnyEngine = started.engine
        self._engines = started.engines
        self._link = link
        self._reporter = StepReporter(started.engines, started.compile_ledger)
        self._constraints = ConstraintQueue(started.constraints)
        self._explainer = Explainer([engine.recorder for engine in started.engines])
        self._is_stopped = False
        # Engine's request id -> the front's number, and the sample that it is, where it is one alone.
        self._numbers: dict[str, tuple[int, int | None]] = {}
        self._request_ids: dict[int, list[str]] = {}
        self._begun: set[int] = set()  # of whom something was said
        self._takers: dict[type, Callable[..., None]] = {
            Add: self._add,
            Abort: self._abort,
            EndSample: self._end_sample,
            Watch: lambda message: self._reporter.watch(message.is_on),
            Stop: self._stop,
        }

    def run(self) -> None:
        """Until stopped. Raises: LinkError if the front has gone; EngineError if the engine can't go on."""
        while not self._is_stopped:
            for message in self._link.poll(self._wait_s):
                self._take(message)
            for made in self._constraints.take():
                self._queue(*made)
            if self._engine.has_unfinished:
                self._step()
            if self._reporter.is_due(is_busy=self._engine.has_unfinished or self._constraints.has_work):
                self._link.send(self._reporter.report())
            for explained in self._explainer.take():
                self._link.send(explained)

    @property
    def _wait_s(self) -> float:
        """How long to wait for messages."""
        if self._engine.has_unfinished:
            return 0.0
        return ASIDE_WAIT_S if self._constraints.has_work or self._explainer.is_busy else IDLE_WAIT_S

    def _take(self, message: ToEngine) -> None:
        self._takers[type(message)](message)

    def _step(self) -> None:
        events = [wire for event in self._engine.step() if (wire := self._event(event)) is not None]
        if events:
            self._link.send(Tokens(self._engine.clock.now(), events))

    def _add(self, message: Add) -> None:
        if message.params.structured is None:
            self._queue(message)
        else:
            self._constraints.add(message)

    def _queue(self, message: Add, constraint: "Constraint | SarathiError | None" = None) -> None:
        # A sample of several that goes on alone needs a name of its own.
        request_id = message.request_id if message.sample is None else f"{message.request_id}-{message.sample}"
        try:
            if isinstance(constraint, SarathiError):
                raise constraint
            self._engine.add_request(
                message.prompt_token_ids,
                message.params,
                request_id=request_id,
                arrival_s=message.arrival_s,
                cache_salt=message.cache_salt,
                slo_class=message.slo_class,
                client=message.client,
                priority=message.priority,
                output_token_ids=message.output_token_ids,
                constraint=constraint,
            )
        except (RequestError, ModelError) as error:
            self._link.send(Refused(message.number, str(error), getattr(error, "param", None)))
            return
        self._numbers[request_id] = (message.number, message.sample)
        self._request_ids.setdefault(message.number, []).append(request_id)
        if message.wants_timing:
            self._explainer.follow(message.number, request_id, message.params.n, message.sample or 0)

    def _abort(self, message: Abort) -> None:
        self._constraints.drop(message.number)
        self._explainer.forget(message.number)
        self._begun.discard(message.number)
        for request_id in self._request_ids.pop(message.number, ()):
            self._engine.abort(request_id)
            self._numbers.pop(request_id, None)

    def _end_sample(self, message: EndSample) -> None:
        for request_id in self._request_ids.get(message.number, ()):
            _, sample = self._numbers[request_id]
            if sample in (None, message.sample):
                for event in self._engine.end_sample(request_id, message.sample if sample is None else 0):
                    self._event(event)

    def _stop(self, _: Stop) -> None:
        self._is_stopped = True

    def _beginning(self, request_id: str) -> Done | None:
        """What is known of a request at its first token; None if it has ended."""
        found = filter(None, (engine.scheduler.get(request_id) for engine in self._engines))
        if (request := next(found, None)) is None:
            return None
        first_s = request.first_scheduled_s
        delay_s = None if first_s is None else first_s - request.arrival_s
        return Done(request.num_prefix_hit_tokens, request.num_preemptions, delay_s)

    def _event(self, event: StreamEvent) -> TokenEvent | None:
        """As the front is told of it; None: it does not ask any more."""
        found = self._numbers.get(event.request_id)
        if found is None:
            return None
        number, sample = found
        done = None if number in self._begun else self._beginning(event.request_id)
        self._begun.add(number)
        if event.output is not None:
            metrics = event.output.metrics
            done = Done(metrics.num_prefix_hit_tokens, metrics.num_preemptions, metrics.scheduling_delay_s)
            del self._numbers[event.request_id]
            left = self._request_ids[number]
            left.remove(event.request_id)
            if not left:
                del self._request_ids[number]
                self._begun.discard(number)
                self._explainer.ended(number)
        return TokenEvent(
            number,
            event.sample_index if sample is None else sample,
            event.token_ids,
            event.finish_reason,
            event.fault,
            event.logprobs,
            None if event.prompt_logprobs is None else list(event.prompt_logprobs),
            done,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
