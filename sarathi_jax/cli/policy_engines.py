"""One model, loaded and compiled once, and over it an engine of its own for each scheduling policy: what policies are compared with, step by step.

Only greedy programs are compiled. All policies share programs, weights and the memory of the KV pages, so that they differ in their schedules alone.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import NamedTuple

from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.clock import WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.stalls import ScheduleKeeper
from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.buckets import Variant
from sarathi_jax.execution.build import EnginePrograms
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.replicas import build_replicas, start_replicas
from sarathi_jax.profiling import limits_of, measure
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policy import Policy
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.step_profile import StepProfile


class PolicyEngines(NamedTuple):
    """config: its token budget is that of the largest step there is."""

    config: EngineConfig
    programs: EnginePrograms
    executor: JaxExecutor

    @property
    def vocab_size(self) -> int:
        return self.programs.geometry.vocab_size

    @property
    def mixed_sizes(self) -> list[int]:
        """Tokens of the compiled steps that may hold chunks, ascending."""
        return [each.num_tokens for each in self.programs.table.buckets if not each.is_decode_only]

    def profile(self, num_repeats: int) -> StepProfile:
        """What steps of every compiled size take; no engine may be in use."""
        return measure(self.executor, self._limits(self.config.step_tokens), self.config, num_repeats)

    def budget_for(self, policy: Policy, asked: int) -> int:
        """The token budget that is asked for, or where a policy does not take it, because it never splits a prompt, that of the largest step."""
        try:
            policy.check(self._limits(asked))
        except ConfigError:
            return self.config.step_tokens
        return asked

    def _limits(self, token_budget: int) -> SchedulerLimits:
        return replace(limits_of(self.executor, self.config), token_budget=token_budget)

    def engine(self, policy: Policy, token_budget: int) -> tuple[Engine, ScheduleKeeper]:
        """A fresh engine, without requests and without cached pages, and what keeps its schedules. One at a time may be in use."""
        keeper = ScheduleKeeper(self.executor)
        scheduler = Scheduler(policy, **asdict(self._limits(token_budget)))
        engine = Engine(scheduler, keeper, WallClock(), is_overlapped=self.config.overlap, tokenizer=None)
        return engine, keeper


@contextmanager
def policy_engines(config: EngineConfig, *, progress: bool) -> Iterator[PolicyEngines]:
    """Closed afterwards. progress: show bars on standard error. Raises: ConfigError, ModelError, CapacityError."""
    if config.mesh_shape.get("data", 1) * config.mesh_shape.get("stage", 1) > 1 or (config.num_processes or 1) > 1:
        raise ConfigError(
            f"policies are compared on one engine without a pipeline, got mesh={config.mesh}, num_processes={config.num_processes}: leave out stage, data"
            " and processes."
        )
    source = find_model(config.model, is_dummy=config.load_format == "dummy")
    replicas = build_replicas(source, config, progress=progress, variants=(Variant.GREEDY,))
    [(programs, executor)] = start_replicas(replicas, progress=progress)
    with closing(executor):
        yield PolicyEngines(config, programs, executor)
