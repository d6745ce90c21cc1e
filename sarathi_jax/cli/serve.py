"""Serve a model over HTTP, as OpenAI's API has it, with a page at /. SIGTERM and Ctrl-C let running requests end first; a second one does not.

Options also come from SARATHI_JAX_... variables and from a file: see `--help settings`. Flags of vLLM's that mean the same are taken too."""

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sarathi_jax.cli.model_options import add_model_arguments, engine_config
from sarathi_jax.cli.options import Parser, add_fields, given_fields
from sarathi_jax.cli.section_help import answer_help
from sarathi_jax.cli.serve_summary import summary, table
from sarathi_jax.cli.settings import add_settings_arguments, config_text
from sarathi_jax.cli.vllm_flags import translate
from sarathi_jax.config import EngineConfig
from sarathi_jax.faults import refuse_in_production
from sarathi_jax.serve.config import ServeConfig

if TYPE_CHECKING:
    from sarathi_jax.serve.front import Front

logger = logging.getLogger(__name__)

EXAMPLES = """  sarathi-jax serve demo
  sarathi-jax serve ./my-model --host 0.0.0.0 --port 9000 --api-key-file keys.txt
  sarathi-jax serve ./my-model --mesh tensor=4 --policy slo --tbt-slo-ms 100
  sarathi-jax serve --config server.yaml --print-config
  curl -d '{"model":"demo","prompt":"12+30=","max_tokens":4}' -H 'Content-Type: application/json' http://127.0.0.1:8000/v1/completions"""


def needs_jax(args: argparse.Namespace) -> bool:
    """Never: the engine has a process of its own."""
    return False


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    names = [field.name for field in fields(ServeConfig)]
    for title in ("server", "limits", "log"):
        add_fields(parser, ServeConfig, title, skip=[name for name in names if section_of(name) != title])
    add_settings_arguments(parser, (ServeConfig, EngineConfig), os.environ)

    def read_words(words: Sequence[str]) -> Sequence[str]:
        answer_help(parser, words)
        return translate(words)

    parser.translate = read_words


def section_of(name: str) -> str:
    """Where the help has a field of ServeConfig."""
    if name.startswith("max_") or name.endswith(("timeout_s", "alive_s")):
        return "limits"
    return "log" if name.startswith(("log_", "access_log", "metrics_", "otlp_")) else "server"


def run(args: argparse.Namespace) -> int:
    config, engine = ServeConfig(**given_fields(args, ServeConfig)), engine_config(args)
    if args.print_config:
        print(config_text([engine, config]), end="")
        return 0
    refuse_in_production()
    from sarathi_jax.serve.server import serve  # here: `--help` does not wait for FastAPI

    return serve(config, engine_options(engine), say_ready)


def engine_options(config: EngineConfig) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    return {field.name: value for field in fields(config) if (value := getattr(config, field.name)) != field.default}


def say_ready(front: "Front", url: str) -> None:
    """Through the log: whoever does not read it holds nothing up."""
    said = summary(front, url)
    logger.info("%s", table(said), extra={"is_plain": True, "fields": {**said, "message": "ready"}})
