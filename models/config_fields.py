"""Typed fields of a model's configuration file: each one checked where it is read, each fault named with its file.

Knows nothing of what the fields mean."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from sarathi_jax.errors import ModelError

# No size or token id of a model is larger: they become int32 on the device.
MAX_INTEGER = 2**31 - 1
MAX_QUOTED_CHARS = 80


class ConfigFields:
    """A JSON object of the file `path`, read field by field.

    prefix: names it where it lies inside another one. spelling: what this file calls fields that others call otherwise.
    """

    def __init__(
        self, path: Path, values: Mapping[str, Any], prefix: str = "", spelling: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self._values = values
        self._prefix = prefix
        self._spelling = spelling or {}

    def spelled(self, spelling: Mapping[str, str]) -> "ConfigFields":
        """The same file, where fields have other names than they are asked for by: usual name -> name in this file."""
        return ConfigFields(self.path, self._values, self._prefix, spelling)

    def with_absent(self, values: Mapping[str, object]) -> "ConfigFields":
        """The same file, as if it said these where it says nothing."""
        return ConfigFields(self.path, {**values, **self._values}, self._prefix, self._spelling)

    def name(self, name: str) -> str:
        """What this file calls a field."""
        return self._spelling.get(name, name)

    def __contains__(self, name: str) -> bool:
        return self.name(name) in self._values

    @property
    def given_names(self) -> frozenset[str]:
        """Names of the fields that are there and not null."""
        return frozenset(name for name, value in self._values.items() if value is not None)

    def get(self, name: str) -> object:
        """A field as it stands in the file; None where it is not there."""
        return self._values.get(self.name(name))

    def integer(self, name: str, *, least: int = 1) -> int:
        """A whole number that has to be there."""
        value = self.integer_or_none(name, least=least)
        return self.refuse(name, _integer_rule(least), remedy="add it") if value is None else value

    def integer_or_none(self, name: str, absent: int | None = None, *, least: int = 1) -> int | None:
        """A whole number; None where the file says null, `absent` where it says nothing."""
        value = self._values.get(self.name(name), absent)
        if value is None or _is_integer(value, least):
            return value
        return self.refuse(name, _integer_rule(least))

    def number(self, name: str, absent: float | None = None, *, least: float | None = None, over: float = 0.0) -> float:
        """A finite number > `over`, or >= `least` where that is given; `absent` where it is not there or null.

        Without `absent` it has to be there."""
        rule = f"must be a finite number {f'> {over:g}' if least is None else f'>= {least:g}'}"
        value: Any = self.get(name)
        if value is None:
            return self.refuse(name, rule, remedy="add it") if absent is None else absent
        if not _is_finite(value):
            return self.refuse(name, rule)
        return float(value) if (value > over if least is None else value >= least) else self.refuse(name, rule)

    def number_or_none(self, name: str, absent: float | None) -> float | None:
        """A finite number > 0; None where the file says null, `absent` where it says nothing."""
        return absent if name not in self else None if self.get(name) is None else self.number(name)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers > 0 that has to be there."""
        values = self._values.get(name)
        if not isinstance(values, list) or not values or not all(map(_is_positive, cast("list[object]", values))):
            return self.refuse(name, "must be a list of finite numbers > 0")
        return tuple(float(value) for value in cast("list[float]", values))

    def boolean(self, name: str, absent: bool = False) -> bool:
        """true or false; `absent` where it is not there or null."""
        value = self.get(name)
        if value is None:
            return absent
        return value if isinstance(value, bool) else self.refuse(name, "must be true or false")

    def token_ids(self, name: str, absent: int | None, vocab_size: int) -> tuple[int, ...]:
        """One token id, a list of them, or null for none; `absent` where the file says nothing."""
        value = self._values.get(self.name(name), absent)
        ids = cast("list[object]", value) if isinstance(value, list) else [] if value is None else [value]
        if not all(_is_integer(each, 0, vocab_size - 1) for each in ids):
            self.refuse(name, f"must be a token id below vocab_size={vocab_size}, a list of them, or null")
        return tuple(dict.fromkeys(cast("list[int]", ids)))

    def nested(self, name: str) -> "ConfigFields | None":
        """An object inside this one; None where it is not there, null or empty."""
        value = self.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            return self.refuse(name, "must be an object or null")
        return ConfigFields(self.path, cast("dict[str, Any]", value), f"{self._prefix}{name}.")

    def refuse(self, name: str, rule: str, *, remedy: str = "correct it, or fetch the file again") -> NoReturn:
        """Raises: ModelError that names the file and the field, with the rule that it broke."""
        name = self.name(name)
        got = "nothing" if name not in self._values else repr(self._values[name])[:MAX_QUOTED_CHARS]
        raise ModelError(f"{self.path}: {self._prefix}{name} {rule}, got {got}: {remedy}.")


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e300 and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0


def _is_integer(value: Any, least: int, most: int = MAX_INTEGER) -> bool:
    return type(value) is int and least <= value <= most


def _integer_rule(least: int) -> str:
    return f"must be a whole number from {least} to {MAX_INTEGER}"
