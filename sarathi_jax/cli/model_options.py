"""The part of the command line that every command with a model shares: which model, the engine's options, and starting the engine from them."""

import argparse
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from sarathi_jax.cli.options import Parser, UsageError, add_fields, given_fields
from sarathi_jax.config import EngineConfig
from sarathi_jax.group.place import Place, find_place

if TYPE_CHECKING:
    from sarathi_jax.llm import LLM

DEFAULT_MODEL = EngineConfig().model


def add_model_arguments(parser: Parser, *, skip: Collection[str] = ()) -> None:
    """MODEL, or --model, and one flag a field of EngineConfig, but for those to skip."""
    text = f"demo, a folder, or a hub id (default: {DEFAULT_MODEL})"
    parser.add_argument("model_word", nargs="?", metavar="MODEL", help=text)
    parser.add_argument("--model", metavar="MODEL", help="the same, as a flag")
    add_fields(parser, EngineConfig, "engine", skip=("model", *skip))


def model_name(args: argparse.Namespace) -> str:
    """Raises: UsageError if the model was named twice, differently."""
    return named_model(args) or DEFAULT_MODEL


def named_model(args: argparse.Namespace) -> str | None:
    """None if none was named. Raises: UsageError if the model was named twice, differently."""
    if args.model_word and args.model and args.model_word != args.model:
        raise UsageError(f"MODEL must be named once, got {args.model_word} and --model {args.model}: leave one out.")
    return args.model_word or args.model


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """Which model and how to run it, checked before anything heavy is loaded.

    Raises: ConfigError; UsageError if the model was named twice, differently."""
    return EngineConfig(model=model_name(args), **given_fields(args, EngineConfig, skip=("model",)))


def place_of(args: argparse.Namespace) -> Place | None:
    """Where this process stands in a group of several; None: it is alone. Raises: as `engine_config`; ConfigError if the options don't say where."""
    is_asked_for = {"num_processes", "process_id", "coordinator"} & vars(args).keys()
    return find_place(engine_config(args)) if is_asked_for else None


@contextmanager
def running_engine(config: EngineConfig) -> "Iterator[LLM]":
    """The model, loaded and compiled; closed afterwards. Raises: SarathiError."""
    from sarathi_jax.llm import LLM  # here: jax takes over a second to import

    options = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "model"}
    with closing(LLM(config.model, **options)) as llm:
        yield llm
