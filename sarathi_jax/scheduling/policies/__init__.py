"""Scheduling policies by name, one file each. To add one: a class with `plan`, and a line in `POLICIES`; its contract tests come with that line."""

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.policies.sarathi import SarathiPolicy
from sarathi_jax.scheduling.policy import Policy

POLICIES: dict[str, type[Policy]] = {"sarathi": SarathiPolicy}


def make_policy(name: str) -> Policy:
    """Raises: ConfigError, listing the right names, if there is no such policy."""
    if name not in POLICIES:
        raise ConfigError(f"policy={name!r} is unknown. Choose one of: {', '.join(sorted(POLICIES))}.")
    return POLICIES[name]()
