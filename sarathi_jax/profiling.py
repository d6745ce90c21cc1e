"""Measures what an executor's steps take on this machine, and makes the `slo` policy that starts from that."""

from importlib.metadata import version
from pathlib import Path

import jax
from tqdm import tqdm

from sarathi_jax.clock import WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.step_probes import StepProber, num_rounds, plan_probes, quick_probes
from sarathi_jax.execution.build import choose_max_model_len
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.models import ModelConfig
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.service_levels import service_levels
from sarathi_jax.scheduling.step_profile import StepProfile, mesh_name, read_profile
from sarathi_jax.scheduling.step_times import StepTimeModel
from sarathi_jax.scheduling.token_budget import check_profile

NUM_QUICK_REPEATS = 3


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


def measure(
    executor: JaxExecutor,
    limits: SchedulerLimits,
    config: EngineConfig,
    num_repeats: int,
    *,
    is_quick: bool = False,
    progress: bool | None = None,
) -> StepProfile:
    """What steps take on an executor with nothing else to do. is_quick: of the fewest kinds of steps. progress: show a bar; None: on a terminal."""
    decode_sizes, mixed_sizes = (
        tuple(sorted({each.num_tokens for each in executor.table.buckets if each.is_decode_only == is_decode_only}))
        for is_decode_only in (True, False)
    )
    prober = StepProber(executor, WallClock(), limits, num_stages=executor.num_stages, is_overlapped=config.overlap)
    probes = (quick_probes if is_quick else plan_probes)(decode_sizes, mixed_sizes, limits)
    with tqdm(
        total=len(probes) * num_rounds(num_repeats),
        desc="profile",
        unit="probe",
        disable=None if progress is None else not progress,
    ) as bar:
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


def make_slo_policy(config: EngineConfig, profile: StepProfile) -> SloPolicy:
    """A policy of one engine: it learns from that engine's steps."""
    assert config.tbt_slo_ms is not None, "the config has checked this"
    levels = service_levels(
        config.tbt_slo_ms / 1e3,
        ttft_slo_s=_seconds(config.ttft_slo_ms),
        batch_tbt_slo_s=_seconds(config.batch_tbt_slo_ms),
        **({} if config.batch_ttft_slo_ms is None else {"batch_ttft_slo_s": config.batch_ttft_slo_ms / 1e3}),
    )
    times = StepTimeModel.fit(profile)
    return SloPolicy(times, levels, sizes=profile.mixed_sizes, is_fair=config.fair_clients)


def start_profile(config: EngineConfig, executor: JaxExecutor, *, progress: bool) -> StepProfile:
    """The profile that the config names, or what a few steps of each size take now: seconds, on an engine that nobody uses yet.

    Raises: ConfigError if the profile can't be read, or is of another model or mesh; EngineError if a step fails.
    """
    if config.profile is not None:
        profile = read_profile(Path(config.profile))
        check_profile(profile, config)
        return profile
    return measure(executor, limits_of(executor, config), config, NUM_QUICK_REPEATS, is_quick=True, progress=progress)


def _seconds(goal_ms: float | None) -> float | None:
    return None if goal_ms is None else goal_ms / 1e3


def least_limits(config: EngineConfig, model: ModelConfig) -> SchedulerLimits:
    """What the scheduler's limits will be, before memory says how many pages there are: as many as one request may need, or as asked."""
    max_model_len = choose_max_model_len(config.max_model_len, model)
    return SchedulerLimits(
        num_pages=config.num_pages or -(-max_model_len // config.page_size),
        page_size=config.page_size,
        token_budget=config.step_tokens,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
    )
