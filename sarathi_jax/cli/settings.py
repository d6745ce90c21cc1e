"""Options from elsewhere than the command line: the environment, and a file. The command line comes first, then the environment, then the file, then the default.

A file is YAML, or TOML if its name ends so; its keys are the flags' names, with - or _. A variable is SARATHI_JAX_ and the field's name in capitals; of several
values, with commas between them. A variable that is empty counts as unset.
"""

import argparse
import difflib
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sarathi_jax import __version__
from sarathi_jax.cli.options import DataclassType, FieldKind, Parser, field_kind
from sarathi_jax.cli.vllm_flags import ours
from sarathi_jax.errors import ConfigError

PREFIX = "SARATHI_JAX_"
# These have a meaning of their own, and are read where it is known.
OTHER_VARIABLES = frozenset({"API_KEY", "GROUP_KEY", "GROUP_KEY_FILE"})
BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
TYPO = 0.85  # likeness of a variable to a field's name from where on it is one
SECRET = "api_key"

type Kinds = Mapping[str, FieldKind]


def add_settings_arguments(parser: Parser, configs: Sequence[type[DataclassType]], environ: Mapping[str, str]) -> None:
    """--config and --print-config; and have the parser read the rest of the configs' fields where they are."""
    group = parser.add_argument_group("settings")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="YAML or TOML file of options; flags and SARATHI_JAX_... variables come before it",
    )
    group.add_argument(
        "--print-config", action="store_true", help="print all options as they would be used, as such a file, and end"
    )
    parser.complete = lambda args: complete(args, field_kinds(configs), environ)


def field_kinds(configs: Iterable[type[DataclassType]]) -> dict[str, FieldKind]:
    return {
        field.name: field_kind(typing.get_type_hints(config)[field.name], field.metadata, field.default)
        for config in configs
        for field in fields(config)
    }


def complete(args: argparse.Namespace, kinds: Kinds, environ: Mapping[str, str]) -> None:
    """Set what the command line left out. Raises: ConfigError."""
    found = read_file(Path(args.config), kinds) if args.config is not None else {}
    found |= read_environment(environ, kinds)
    for name, value in found.items():
        is_given = (args.model or args.model_word) if name == "model" else hasattr(args, name)
        if not is_given:
            setattr(args, name, value)


# ---- the environment


def read_environment(environ: Mapping[str, str], kinds: Kinds) -> dict[str, Any]:
    """Fields that variables set. Raises: ConfigError, also for a variable that is almost a field's."""
    found = {}
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX)
        if name == variable or not text or name in OTHER_VARIABLES:
            continue
        kind = kinds.get(name.lower())
        if kind is not None and variable.isupper():
            # Kubernetes sets this one beside a service that is called sarathi-jax.
            if not (name == "PORT" and text.startswith("tcp://")):
                found[name.lower()] = _of_text(variable, text, kind)
        elif close := difflib.get_close_matches(name.lower(), kinds, n=1, cutoff=TYPO):
            raise ConfigError(f"{variable} is no option: did you mean {PREFIX}{close[0].upper()}?")
    return found


def _of_text(variable: str, text: str, kind: FieldKind) -> Any:
    if kind.is_flag:
        if text.lower() not in BOOLEANS:
            raise ConfigError(f"{variable} must be true or false, got {text!r}: write one of them.")
        return BOOLEANS[text.lower()]
    try:
        return [kind.read(part.strip()) for part in text.split(",")] if kind.is_repeated else kind.read(text)
    except ValueError as error:
        raise ConfigError(f"{variable} must be {_words(kind)}, got {text!r}: correct it.") from error


# ---- the file


def read_file(path: Path, kinds: Kinds) -> dict[str, Any]:
    """Fields that a file sets. Raises: ConfigError."""
    found = {}
    for key, value in _load(path).items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            close = ours(f"--{name.replace('_', '-')}") or difflib.get_close_matches(name, kinds, n=1)
            hint = f": did you mean {close[0]}?" if close else ": leave it out."
            raise ConfigError(f"{path}: unknown key {key!r}{hint}")
        if value is not None:
            found[name] = _of_value(f"{path}: {key}", value, kinds[name])
    return found


def _load(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config must name a readable text file, got {path} ({error}): correct it.") from error
    if path.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} must be TOML, got {error}: correct it.") from error
    import yaml  # here: only who has such a file waits for it

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} must be YAML, got {' '.join(str(error).split())}: correct it.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} must have a key and a value on each line, got {type(value).__name__}: write port: 8000."
        )
    return value


def _of_value(place: str, value: Any, kind: FieldKind) -> Any:
    if kind.is_repeated:
        values = value if isinstance(value, list) else [value]
        return [_of_value(place, each, FieldKind(read=kind.read)) for each in values]
    if isinstance(value, dict) and kind.read is str:  # `rules`, which may be a table: the config looks at it
        return value
    is_right = (
        isinstance(value, bool) if kind.is_flag else isinstance(value, _types(kind)) and not isinstance(value, bool)
    )
    if not is_right:
        raise ConfigError(f"{place} must be {_words(kind)}, got {value!r}: correct it.")
    return value


def _types(kind: FieldKind) -> tuple[type, ...]:
    return {int: (int,), float: (int, float)}.get(kind.read, (str,))  # pyright: ignore[reportCallIssue, reportArgumentType]


def _words(kind: FieldKind) -> str:
    if kind.is_flag:
        return "true or false"
    return {"N": "a whole number", "X": "a number"}.get(kind.metavar, "text")


# ---- printing


def config_text(configs: Sequence[Any]) -> str:
    """A file that sets all fields of these configs to what they are, but for keys, which are not shown."""
    import yaml

    values = {field.name: getattr(config, field.name) for config in configs for field in fields(config)}
    keys = values.pop(SECRET, ())
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    hidden = f"# {SECRET}: {len(keys)}, not shown here\n" if keys else ""
    return f"# sarathi-jax {__version__}\n{hidden}{yaml.safe_dump(plain, sort_keys=False)}"
