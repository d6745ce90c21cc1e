"""A policy as plain values, and made again from them: what a record keeps, so that a replay starts from the same one. Floats keep every bit."""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.policy import Policy
from sarathi_jax.scheduling.service_levels import ServiceLevel
from sarathi_jax.scheduling.step_times import BaseTimes, StepTimeModel

BASE_FIELDS = ("sizes", "seconds", "groups", "per_token_s", "log_ratios", "factors")


def policy_options(policy: Policy) -> dict[str, Any]:
    """What a policy was made with, and for one that learns, what it knows; {} for those that have no options. To be asked before it has seen a request."""
    if not isinstance(policy, SloPolicy) or not isinstance(policy.times, StepTimeModel):
        return {}
    return {
        "times": _times_options(policy.times),
        "levels": {name: asdict(level) for name, level in policy.levels.items()},
        "sizes": list(policy.sizes),
        "is_fair": policy.is_fair,
    }


def policy_from(name: str, options: Mapping[str, Any]) -> Policy:
    """The same policy again. Raises: ConfigError if there is none of that name, or the options are none of its."""
    if name != "slo" or not options:
        return make_policy(name)
    try:
        levels = {each: ServiceLevel(**level) for each, level in options["levels"].items()}
        times = _times_from(options["times"])
        return SloPolicy(times, levels, sizes=tuple(options["sizes"]), is_fair=options["is_fair"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"A record's policy options must be those of {name!r}, got {error!r}: replay with the version of sarathi-jax that recorded."
        ) from error


def _times_options(times: StepTimeModel) -> dict[str, Any]:
    options = {
        name: getattr(times, name) for name in ("per_row_s", "per_context_s", "per_pair_s", "log_ratio", "ratio")
    }
    return options | {"decode": _base_options(times.decode), "mixed": _base_options(times.mixed)}


def _base_options(base: BaseTimes) -> dict[str, Any]:
    lists = {name: value.copy() if isinstance(value := getattr(base, name), list) else value for name in BASE_FIELDS}
    return lists | {"recent": [list(each) for each in base.recent]}


def _times_from(options: Mapping[str, Any]) -> StepTimeModel:
    costs = {name: options[name] for name in ("per_row_s", "per_context_s", "per_pair_s")}
    times = StepTimeModel(_base_from(options["decode"]), _base_from(options["mixed"]), **costs)
    times.resume(options["log_ratio"], options["ratio"])
    return times


def _base_from(options: Mapping[str, Any]) -> BaseTimes:
    base = BaseTimes((), [(1, 1.0)])
    for name in BASE_FIELDS:
        setattr(base, name, options[name])
    base.recent = [deque(each, maxlen=3) for each in options["recent"]]
    return base
