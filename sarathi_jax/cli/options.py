"""Command-line options made from the fields of a config dataclass: names, types, defaults and help are written once, in the dataclass.

A flag that is not given leaves its field out of the result, so that the dataclass's own default holds. Booleans come in pairs, `--x/--no-x`;
tuples are flags that may be repeated; a mapping takes KEY=VALUE pairs, with commas between them or repeated; where a field may be None and its
default is something else, `none` says so.
"""

import argparse
import difflib
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Literal, NoReturn, Protocol, Union, get_args, get_origin

from sarathi_jax.errors import ConfigError


class DataclassType(Protocol):
    """Any dataclass, as a type."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class UsageError(ConfigError):
    """The words of a command line are wrong."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations, names the closest option for one it does not know, and raises its errors."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.translate: Callable[[Sequence[str]], Sequence[str]] = list
        self.complete: Callable[[argparse.Namespace], None] = lambda args: None

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Read the words of a command line, as `translate` has them, and let `complete` add to what was read.

        Raises: UsageError if they are wrong; SystemExit after printing help."""
        parsed, unknown = self.parse_known_args(self.translate(words))
        if unknown:
            kind = "option" if unknown[0].startswith("-") else "argument"
            self.error(did_you_mean(kind, unknown[0], [flag for each in self._actions for flag in each.option_strings]))
        self.complete(parsed)
        return parsed

    def error(self, message: str) -> NoReturn:
        ending = "" if message.endswith(("?", ".")) else "."
        raise UsageError(f"{message}{ending} See `{self.prog} --help`.")


def did_you_mean(kind: str, got: str, known: Collection[str]) -> str:
    """ "unknown option --tokn-budget: did you mean --token-budget?" """
    close = difflib.get_close_matches(got.split("=")[0], known, n=1, cutoff=0.6)
    return f"unknown {kind} {got}" + (f": did you mean {close[0]}?" if close else ".")


@dataclass(frozen=True, slots=True)
class FieldKind:
    """How a field's value is read from the command line; `metavar` stands for the value in the help."""

    read: Callable[[str], Any] = str
    metavar: str = "TEXT"
    is_flag: bool = False
    is_repeated: bool = False
    is_mapping: bool = False
    choices: tuple[str, ...] | None = None


def add_fields(
    parser: argparse.ArgumentParser,
    config: type[DataclassType],
    title: str,
    *,
    skip: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add one flag a field of `config`, in a help group of its own.

    Args:
      skip: fields that get no flag.
      defaults: what the help names as default where the command has its own; pass the same to `given_fields`."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in fields(config):
        if field.init and field.name not in skip:
            default = (defaults or {}).get(field.name, field.default)
            _add_field(group, field, default, field_kind(hints[field.name], field.metadata, default))


def given_fields(
    args: argparse.Namespace,
    config: type[DataclassType],
    *,
    skip: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields that were given on the command line, over `defaults`, as keyword arguments of `config`."""
    names = {field.name for field in fields(config)} - set(skip)
    return {**(defaults or {}), **{name: value for name, value in vars(args).items() if name in names}}


def field_kind(hint: Any, metadata: Mapping[str, Any], default: Any = None) -> FieldKind:
    """How to read a value of type `hint`: bool, int, float, str, Literal, tuple[X, ...], Mapping[X, Y], or the first of several."""
    is_union = get_origin(hint) in (Union, types.UnionType)
    is_optional = is_union and type(None) in get_args(hint)
    if is_union:
        hint = next(part for part in get_args(hint) if part is not type(None))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return FieldKind(choices=tuple(arguments))
    if origin is tuple:
        return FieldKind(read=arguments[0], metavar=_metavar(arguments[0]), is_repeated=True)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return FieldKind(read=_pairs_reader(*arguments), metavar="KEY=VALUE,...", is_mapping=True)
    read = hint if hint in (int, float) else str
    if is_optional and default is not None:
        read = _or_none(read)
    return FieldKind(read=read, metavar=_metavar(hint), is_flag=hint is bool, choices=metadata.get("choices"))


class _MergePairs(argparse.Action):
    """Collects the dicts of a repeated option into one."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), **values})


def _pairs_reader(read_key: Callable[[str], Any], read_value: Callable[[str], Any]) -> Callable[[str], dict[Any, Any]]:
    def read_pairs(text: str) -> dict[Any, Any]:
        pairs = [part.partition("=") for part in text.split(",")]
        return {read_key(key): read_value(value) for key, _, value in pairs}

    read_pairs.__name__ = "KEY=VALUE"  # argparse says "invalid KEY=VALUE value: '...'"
    return read_pairs


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def read_optional(text: str) -> Any:
        return None if text.lower() == "none" else read(text)

    read_optional.__name__ = read.__name__
    return read_optional


def _metavar(hint: Any) -> str:
    return "N" if hint is int else "X" if hint is float else "TEXT"


def _add_field(group: Any, field: Field[Any], default: Any, kind: FieldKind) -> None:
    flag = "--" + field.name.replace("_", "-")
    text = field.metadata.get("help", "")
    if default is not MISSING and default not in (None, ()):
        text += f" (default: {default})"
    options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if kind.is_flag:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        return
    options |= {"type": kind.read, "metavar": kind.metavar}
    if kind.choices is not None:
        options |= {"choices": kind.choices, "metavar": "|".join(map(str, kind.choices))}
    if kind.is_mapping:
        options["action"] = _MergePairs
    elif kind.is_repeated:
        options["action"] = "append"
    group.add_argument(flag, **options)
