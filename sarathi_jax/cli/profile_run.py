"""Runs the probes of `bench profile` on the executor of a model, and makes a profile of what they took."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version

import jax
from tqdm import tqdm

from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.cli.model_options import running_engine
from sarathi_jax.clock import WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.step_probes import StepProber, num_rounds, plan_probes
from sarathi_jax.execution.buckets import Variant
from sarathi_jax.execution.compile_ledger import CompileLedger
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.replicas import build_replicas, start_replicas
from sarathi_jax.group.place import find_place
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.step_profile import StepProfile, mesh_name


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


def limits_of(executor: JaxExecutor, config: EngineConfig) -> SchedulerLimits:
    """Of a scheduler over it."""
    geometry = executor.geometry
    return SchedulerLimits(
        num_pages=geometry.num_pages,
        page_size=geometry.page_size,
        token_budget=config.step_tokens,
        max_num_seqs=geometry.max_num_seqs,
        max_model_len=geometry.max_model_len,
        vocab_size=geometry.vocab_size,
    )


def measure(executor: JaxExecutor, limits: SchedulerLimits, config: EngineConfig, num_repeats: int) -> StepProfile:
    """What steps take on an executor with nothing else to do."""
    decode_sizes, mixed_sizes = (
        tuple(sorted({each.num_tokens for each in executor.table.buckets if each.is_decode_only == is_decode_only}))
        for is_decode_only in (True, False)
    )
    prober = StepProber(executor, WallClock(), limits, num_stages=executor.num_stages, is_overlapped=config.overlap)
    probes = plan_probes(decode_sizes, mixed_sizes, limits)
    with tqdm(total=len(probes) * num_rounds(num_repeats), desc="profile", unit="probe", disable=None) as bar:
        samples = prober.measure(probes, num_repeats, bar.update)
    return StepProfile(
        model=config.model,
        device=jax.devices()[0].device_kind,
        mesh=mesh_name(config),
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        kernels=config.kernels,
        jax_version=version("jax"),
        token_budget=limits.token_budget,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        num_kv_tokens=limits.num_pages * limits.page_size,
        num_stages=executor.num_stages,
        decode_sizes=decode_sizes,
        mixed_sizes=mixed_sizes,
        samples=tuple(samples),
    )
