"""The token budget that keeps a latency goal: Sarathi-Serve's compute_token_budget (arXiv 2403.02310, algorithm 3, line 2; section 4.3).

The largest step that a profile of the machine has within the goal, with all requests that may run decoding in it and what is left of it a chunk of a prompt.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from sarathi_jax.config import TOKEN_TILE, EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.step_profile import StepProfile, mesh_name, read_profile
from sarathi_jax.scheduling.step_times import StepLoad, StepTimeModel, StepTimes

logger = logging.getLogger(__name__)

# Sarathi-Serve's goals (section 5, table 3): so many times a step of 32 decodes at 4k tokens each.
REFERENCE_BATCH, REFERENCE_CONTEXT = 32, 4096
STRICT, RELAXED = 5.0, 25.0


@dataclass(frozen=True, slots=True)
class BudgetLoad:
    """What a step is priced with. num_decodes: all that may run. context: tokens that each attends to; a chunk ends there too, or later if it is longer.
    tail_ratio: the 99th percentile of a step's time over its median."""

    num_decodes: int
    context: int
    tail_ratio: float = 1.0

    def step(self, num_tokens: int) -> StepLoad:
        """A step of so many tokens, more than there are decodes."""
        chunk = num_tokens - self.num_decodes
        pairs = chunk * (max(self.context - chunk, 0) + chunk / 2)
        return StepLoad(num_tokens, self.num_decodes + 1, self.num_decodes, self.num_decodes * self.context, pairs)

    def p99_s(self, times: StepTimes, num_tokens: int) -> float:
        return self.tail_ratio * times.seconds(self.step(num_tokens))


def compute_token_budget(tbt_slo_s: float, times: StepTimes, sizes: Sequence[int], load: BudgetLoad) -> int:
    """The largest step whose 99th percentile is within the goal.

    Args:
      sizes: tokens of the steps that were profiled, which are those of the compiled buckets. Of those above 128, multiples of it alone are taken: one
        token more costs a whole tile.
    Raises: ConfigError, with the numbers, if even the smallest that has room for a prompt is over it.
    """
    fitting = [size for size in sizes if size > load.num_decodes and (size < TOKEN_TILE or size % TOKEN_TILE == 0)]
    if not fitting:
        raise ConfigError(
            f"A step must hold more than max_num_seqs={load.num_decodes} tokens, got a profile of steps of up to {max(sizes, default=0)}: lower"
            " max_num_seqs, or profile with a larger token_budget."
        )
    within = [size for size in fitting if load.p99_s(times, size) <= tbt_slo_s]
    if not within:
        smallest = min(fitting)
        raise ConfigError(
            f"tbt_slo_ms={tbt_slo_s * 1e3:g} must be at least {load.p99_s(times, smallest) * 1e3:.4g}, which 99 of 100 of the smallest steps keep:"
            f" {smallest} tokens with {load.num_decodes} decodes at {load.context} tokens each. Raise it, or lower max_num_seqs."
        )
    return max(within)


def default_tbt_slo_s(times: StepTimes, multiple: float = STRICT, context: int = REFERENCE_CONTEXT) -> float:
    """The paper's goal for a machine: STRICT or RELAXED times a step of 32 decodes that no prompt interferes with."""
    batch = REFERENCE_BATCH
    return multiple * times.seconds(StepLoad(batch, batch, batch, batch * context, 0.0))


def budget_load(profile: StepProfile, max_num_seqs: int | None = None) -> BudgetLoad:
    """A profile's machine under full load: as many decodes as may run, at 4k tokens each or as many as a request or the KV cache can hold.

    The microbatches of a pipeline share them evenly.
    """
    num_running = max_num_seqs or profile.max_num_seqs
    context = min(REFERENCE_CONTEXT, profile.max_model_len, max(profile.num_kv_tokens // num_running, 1))
    num_decodes = -(-num_running // profile.num_stages)
    return BudgetLoad(num_decodes, context, median(each.p99_s / each.median_s for each in profile.samples))


def profiled_sizes(profile: StepProfile) -> Sequence[int]:
    """Of steps with a chunk: those of the compiled buckets, or where nothing is padded those that were measured."""
    return profile.mixed_sizes or sorted({each.num_tokens for each in profile.samples if not each.load.is_decode_only})


def with_token_budget(config: EngineConfig) -> EngineConfig:
    """The options with the token budget in the place of the goal that it was chosen for, if it was to be.

    Raises: ConfigError if the profile can't be read, is of another model or mesh, or has no step within the goal; or if the policy `slo` has no goal.
    """
    if config.policy == "slo" and config.tbt_slo_ms is None:
        raise ConfigError(
            "policy='slo' needs tbt_slo_ms, got none: say how far apart tokens may be, as in tbt_slo_ms=100."
        )
    if not config.is_budget_from_slo:
        return config
    assert config.tbt_slo_ms is not None and config.profile is not None, "the config has checked this"
    profile = read_profile(Path(config.profile))
    check_profile(profile, config)
    load = budget_load(profile, config.max_num_seqs)
    budget = compute_token_budget(config.tbt_slo_ms / 1e3, StepTimeModel.fit(profile), profiled_sizes(profile), load)
    logger.info("token budget %d: the largest step within %g ms in %s", budget, config.tbt_slo_ms, config.profile)
    return replace(config, token_budget=budget, tbt_slo_ms=None, profile=None)


def check_profile(profile: StepProfile, config: EngineConfig) -> None:
    """Raises: ConfigError if a profile is of another model or mesh than the engine's."""
    wanted = {"model": Path(config.model).name, "mesh": mesh_name(config)}
    found = {"model": Path(profile.model).name, "mesh": profile.mesh}
    for name in wanted:
        if wanted[name] != found[name]:
            raise ConfigError(
                f"profile {config.profile} must be of {name}={wanted[name]!r}, got one of {found[name]!r}: run `sarathi-jax bench profile` with"
                " this engine's options."
            )
