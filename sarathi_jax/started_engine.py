"""From options to an engine that is ready: model found, processes joined, weights loaded, programs compiled, schedulers made. Knows nothing of text."""

import atexit
import contextlib
import weakref
from collections.abc import Callable
from pathlib import Path

from sarathi_jax.checkpoints.model_source import ModelSource, find_model
from sarathi_jax.clock import Clock, WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.faulty_executor import FaultyExecutor
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.flight_watch import FlightWatch
from sarathi_jax.engine.replicas import AnyEngine, EngineReplicas
from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.build import EnginePrograms
from sarathi_jax.execution.compile_ledger import CompileLedger
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.led_group import LedGroup
from sarathi_jax.execution.replicas import build_replicas, start_replicas
from sarathi_jax.faults import faults_from_environment
from sarathi_jax.group.leader import Leader
from sarathi_jax.group.place import find_place
from sarathi_jax.profiling import least_limits, make_slo_policy, start_profile
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.step_profile import StepProfile
from sarathi_jax.scheduling.token_budget import with_token_budget
from sarathi_jax.text.token_constraint import ConstraintFactory
from sarathi_jax.text.tokenizer import Tokenizer


class StartedEngine:
    """An engine, or several replicas of one, ready to take requests; and what they were made from.

    Args:
      progress: show bars on standard error while weights load and programs compile.
      has_grammar_checker: check each grammar in a process of its own before it is compiled here; False: whoever sends requests has done so.
      found: is called when the model is found, before anything is loaded. Returns: the tokenizer for the engine to make text with; None: it makes none.
    Raises: ConfigError, ModelError, CapacityError; GroupError if one of several processes is lost on the way; what `found` raises.

    config: with the token budget that was chosen. programs: of the first replica. constraints: what makes constraints of structures; None for a
    model without tokenizer.json.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        progress: bool,
        found: Callable[[ModelSource], Tokenizer | None],
        has_grammar_checker: bool = True,
    ) -> None:
        self.config = with_token_budget(config)
        self._has_grammar_checker = has_grammar_checker
        group = _lead_group(self.config)
        try:
            self._start(group, progress, found)
        except BaseException as error:
            if group is not None:
                group.fail(error)
            raise

    def _start(self, group: LedGroup | None, progress: bool, found: Callable[[ModelSource], Tokenizer | None]) -> None:
        config = self.config
        source = self.source = find_model(config.model, is_dummy=config.load_format == "dummy")
        tokenizer = found(source)
        self.constraints = _make_constraints(source, self._has_grammar_checker)
        make_policy(config.policy).check(least_limits(config, source.config))
        built = _build(source, config, progress, group)
        self.programs = built[0][0]
        self.compile_ledger: CompileLedger = self.programs.ledger
        for programs, _ in built[1:]:
            self.compile_ledger.absorb(programs.ledger)
        profile = start_profile(config, built[0][1], progress=progress) if config.policy == "slo" else None
        self.engines = [
            _make_engine(*each, config, profile, tokenizer, self.constraints, place) for place, each in enumerate(built)
        ]
        self.engine: AnyEngine = (
            self.engines[0] if len(self.engines) == 1 else EngineReplicas(self.engines, seed=config.seed)
        )
        # Also when the process ends, or nobody holds this object any more.
        self._finalizer = weakref.finalize(self, _close, self.engine, group, self.constraints)
        if group is not None:
            atexit.register(self._finalizer)  # before jax takes leave of the other processes, which wait for calls

    def close(self) -> None:
        """Abort what runs and release devices; idempotent."""
        self._finalizer()


def _lead_group(config: EngineConfig) -> LedGroup | None:
    """The group that this process leads; None: it is alone. Raises: ConfigError if it has to follow; what LedGroup raises."""
    place = find_place(config)
    if place is None:
        return None
    if not place.is_leader:
        raise ConfigError(
            f"Only process 0 of a group takes requests, got process_id={place.process_id}: call sarathi_jax.follow with the same options, or run"
            " `sarathi-jax follow`."
        )
    return LedGroup(config, place)


def _close(engine: AnyEngine, *others: LedGroup | ConstraintFactory | None) -> None:
    """Each of them, whatever becomes of the others."""
    with contextlib.ExitStack() as stack:
        for other in others:
            if other is not None:
                stack.callback(other.close)
        engine.close()


def _make_constraints(source: ModelSource, has_checker: bool) -> ConstraintFactory | None:
    if source.folder is None:
        return None
    config = source.config
    return ConstraintFactory.from_folder(
        source.folder, config.vocab_size, config.eos_token_ids, has_checker=has_checker
    )


def _build(
    source: ModelSource, config: EngineConfig, progress: bool, group: LedGroup | None
) -> list[tuple[EnginePrograms, JaxExecutor]]:
    """What runs each replica of the engine."""
    if group is None:
        replicas = build_replicas(source, config, progress=progress)
        return start_replicas(replicas, progress=progress)

    def build(leader: Leader) -> list[tuple[EnginePrograms, JaxExecutor]]:
        replicas = build_replicas(source, config, progress=progress, group=leader)
        return start_replicas(replicas, progress=progress, leader=leader)

    return group.run(source, build)


def _make_engine(
    programs: EnginePrograms,
    executor: JaxExecutor,
    config: EngineConfig,
    profile: StepProfile | None,
    tokenizer: Tokenizer | None,
    constraints: ConstraintFactory | None,
    replica: int,
) -> Engine:
    model_config = programs.model_state.config
    scheduler = Scheduler(
        config.policy if profile is None else make_slo_policy(config, profile),
        num_pages=programs.geometry.num_pages,
        page_size=config.page_size,
        token_budget=config.step_tokens,
        max_num_seqs=config.max_num_seqs,
        max_model_len=programs.geometry.max_model_len,
        vocab_size=model_config.vocab_size,
        is_prefix_caching=config.prefix_caching,
        max_num_partial_prefills=config.max_num_partial_prefills,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        preempt_every_steps=config.preempt_every_steps,
        is_head_of_line_blocking=config.head_of_line_blocking,
        num_microbatches=programs.model_state.num_stages,
    )
    clock = WallClock()
    faults = faults_from_environment()
    return Engine(
        scheduler,
        FaultyExecutor(executor, faults) if faults else executor,
        clock,
        is_overlapped=config.overlap,
        tokenizer=tokenizer,
        eos_token_ids=model_config.eos_token_ids,
        seed=config.seed,
        replica=replica,
        recorder=_make_recorder(scheduler, clock, programs.ledger, config, replica),
        constraints=constraints,
    )


def _make_recorder(
    scheduler: Scheduler, clock: Clock, ledger: CompileLedger, config: EngineConfig, replica: int
) -> FlightRecorder | None:
    if not config.flight_recorder:
        return None
    recorder = FlightRecorder(
        scheduler,
        clock,
        max_events=config.flight_recorder,
        is_overlapped=config.overlap,
        model=Path(config.model).name if Path(config.model).is_dir() else config.model,
        replica=replica,
        compiled=ledger.entries,
    )
    if config.flight_record_folder is not None:
        recorder.watch = FlightWatch(recorder, clock, Path(config.flight_record_folder))
    return recorder
