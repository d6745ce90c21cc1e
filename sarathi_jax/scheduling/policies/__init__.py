"""Scheduling policies by name, one file each. To add one: a class with `check` and `plan`, and a line in `POLICIES`; its contract tests come with that line."""

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.policies.alternating import AlternatingPolicy
from sarathi_jax.scheduling.policies.orca import OrcaPolicy
from sarathi_jax.scheduling.policies.request_level import RequestLevelPolicy
from sarathi_jax.scheduling.policies.sarathi import SarathiPolicy
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.policies.vllm import VllmPolicy
from sarathi_jax.scheduling.policy import Policy

POLICIES: dict[str, type[Policy]] = {
    "sarathi": SarathiPolicy,
    "vllm": VllmPolicy,
    "orca": OrcaPolicy,
    "request_level": RequestLevelPolicy,
    "alternating": AlternatingPolicy,
    "slo": SloPolicy,
}


def policy_name(policy: Policy) -> str:
    """The name that makes such a policy; one that has none goes by its class."""
    return next((name for name, each in POLICIES.items() if type(policy) is each), type(policy).__name__)


def make_policy(name: str) -> Policy:
    """Raises: ConfigError, listing the right names, if there is no such policy."""
    if name not in POLICIES:
        raise ConfigError(f"policy={name!r} is unknown. Choose one of: {', '.join(sorted(POLICIES))}.")
    return POLICIES[name]()
