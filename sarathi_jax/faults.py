"""Faults on purpose: named points at which an engine is made to fail, for tests of what happens then. Off, and without cost, unless SARATHI_JAX_FAULTS names some.

    SARATHI_JAX_FAULTS="step.raise.after_donate@12,step.nan_row@20:3,step.poison=7777,step.hang@30:5s,engine.kill9@40"

A fault is POINT[=TOKEN][@STEPS][:VALUE]. STEPS counts the engine's steps from 0: `12`, `12-20`, `12-` (from then on), `/3` (every third); left out: every step.
"""

import os
from dataclasses import dataclass
from typing import Literal

from sarathi_jax.errors import ConfigError

VARIABLE = "SARATHI_JAX_FAULTS"
PERMISSION = "SARATHI_JAX_ALLOW_FAULTS"

# What VALUE is at each point: a row, seconds, or nothing.
POINTS: dict[str, Literal["row", "seconds", "nothing"]] = {
    "step.raise.before": "nothing",  # the step fails before it reaches the device
    "step.raise.after_donate": "nothing",  # the step fails and takes the KV pages with it
    "step.poison": "nothing",  # so does each step with a request whose prompt begins with TOKEN
    "step.nan_row": "row",  # a row's logits are not finite
    "step.nan_all": "nothing",  # no row's are
    "step.oob_token": "row",  # a row's token is none of the vocabulary
    "step.hang": "seconds",  # the step is not done for so long
    "step.slow": "seconds",  # the same, for each step by default
    "engine.kill9": "nothing",  # the process is killed, as by the system when memory runs out
    "engine.exit": "nothing",  # the process ends by itself
}
DEFAULT_SECONDS = {"step.hang": 3600.0, "step.slow": 0.05}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. first, last: steps that it strikes, of these each `every`-th; last None: for ever. row: of those modulo the rows there are. token: of `step.poison`."""

    point: str
    first: int = 0
    last: int | None = None
    every: int = 1
    row: int = 0
    seconds: float = 0.0
    token: int | None = None

    def strikes(self, step: int) -> bool:
        is_within = self.first <= step and (self.last is None or step <= self.last)
        return is_within and (step - self.first) % self.every == 0


def faults_from_environment() -> tuple[Fault, ...]:
    """Those that the variable names; mostly none. Raises: ConfigError if it can't be read."""
    return parse_faults(os.environ.get(VARIABLE, ""))


def refuse_in_production() -> None:
    """Raises: ConfigError if faults are named, and nothing says that this is meant."""
    if os.environ.get(VARIABLE) and os.environ.get(PERMISSION) != "1":
        raise ConfigError(
            f"A server must not be made to fail, got {VARIABLE}={os.environ[VARIABLE]}: unset it, or set {PERMISSION}=1 too in a test."
        )


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Faults as the variable names them. Raises: ConfigError."""
    return tuple(_parse(each.strip()) for each in text.split(",") if each.strip())


def _parse(text: str) -> Fault:
    rest, _, value = text.partition(":")
    rest, _, steps = rest.partition("@")
    point, _, token = rest.partition("=")
    if point not in POINTS:
        raise ConfigError(f"{VARIABLE} must name points among {', '.join(POINTS)}, got {point!r}: choose one of these.")
    if (point == "step.poison") != bool(token):
        raise ConfigError(
            f"{VARIABLE} must have a token after step.poison and after nothing else, got {text!r}: write step.poison=7777."
        )
    first, last, every = _steps(steps, text)
    kind = POINTS[point]
    if value and kind == "nothing":
        raise ConfigError(f"{VARIABLE} must have no value after {point}, got {text!r}: leave out :{value}.")
    return Fault(
        point,
        first,
        last,
        every,
        row=_number(value, text) if value and kind == "row" else 0,
        seconds=_seconds(value, text) if value and kind == "seconds" else DEFAULT_SECONDS.get(point, 0.0),
        token=_number(token, text) if token else None,
    )


def _steps(steps: str, text: str) -> tuple[int, int | None, int]:
    if not steps:
        return 0, None, 1
    if steps.startswith("/"):
        every = _number(steps[1:], text)
        if every == 0:
            raise ConfigError(f"{VARIABLE} must have steps that are at least 1 apart, got {text!r}: write @/1.")
        return every - 1, None, every
    low, dash, high = steps.partition("-")
    first = _number(low, text)
    last = (_number(high, text) if high else None) if dash else first
    if last is not None and last < first:
        raise ConfigError(f"{VARIABLE} must have steps in order, got {text!r}: write the smaller number first.")
    return first, last, 1


def _number(digits: str, text: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise ConfigError(f"{VARIABLE} must have whole numbers, got {digits!r} in {text!r}: write POINT@12:3.")
    return int(digits)


def _seconds(value: str, text: str) -> float:
    for unit, factor in (("ms", 1e-3), ("s", 1.0)):
        digits = value.removesuffix(unit)
        if digits != value and digits.replace(".", "", 1).isdigit() and digits.isascii():
            return float(digits) * factor
    raise ConfigError(f"{VARIABLE} must have a time with its unit, got {value!r} in {text!r}: write 5s or 50ms.")
