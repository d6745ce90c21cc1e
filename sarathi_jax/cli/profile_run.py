"""Runs the probes of `bench profile` on the executor of a model, and makes a profile of what they took."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.cli.model_options import running_engine
from sarathi_jax.config import EngineConfig
from sarathi_jax.execution.buckets import Variant
from sarathi_jax.execution.compile_ledger import CompileLedger
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.replicas import build_replicas, start_replicas
from sarathi_jax.group.place import find_place
from sarathi_jax.profiling import limits_of, measure
from sarathi_jax.scheduling.step_profile import StepProfile


def measure_profile(config: EngineConfig, num_repeats: int) -> tuple[StepProfile, int]:
    """Returns: steps of all compiled sizes, and programs that were compiled while they ran: none, if all is well. Raises: SarathiError."""
    with running_executor(config) as (executor, ledger):
        return measure(executor, limits_of(executor, config), config, num_repeats), ledger.num_after_ready


@contextmanager
def running_executor(config: EngineConfig) -> Iterator[tuple[JaxExecutor, CompileLedger]]:
    """Of the first replica, where there are several, with greedy programs alone, which are the fewest. Closed afterwards.

    A group of processes runs the whole engine, as it would to serve. Raises: SarathiError.
    """
    if find_place(config) is not None:
        with running_engine(config) as llm:
            executor = llm.engines[0].loop.executor
            assert isinstance(executor, JaxExecutor), "a model's engine runs on devices"
            yield executor, llm.compile_ledger
        return
    has_bars = sys.stderr.isatty()
    source = find_model(config.model, is_dummy=config.load_format == "dummy")
    replicas = build_replicas(source, config, progress=has_bars, variants=(Variant.GREEDY,))
    programs, executor = start_replicas(replicas, progress=has_bars)[0]
    with closing(executor):
        yield executor, programs.ledger
