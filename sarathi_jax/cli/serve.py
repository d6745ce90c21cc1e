"""Serve a model over HTTP, as OpenAI's API has it, with a page at /. SIGTERM and Ctrl-C let running requests end first; a second one does not."""

import argparse
import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sarathi_jax.cli.model_options import add_model_arguments, engine_config
from sarathi_jax.cli.options import Parser, add_fields, given_fields
from sarathi_jax.cli.serve_summary import summary, table
from sarathi_jax.config import EngineConfig
from sarathi_jax.serve.config import ServeConfig

if TYPE_CHECKING:
    from sarathi_jax.serve.front import Front

logger = logging.getLogger(__name__)

EXAMPLES = """  sarathi-jax serve demo
  sarathi-jax serve ./my-model --host 0.0.0.0 --port 9000 --api-key-file keys.txt
  sarathi-jax serve ./my-model --mesh tensor=4 --policy slo --tbt-slo-ms 100
  curl -d '{"model":"demo","prompt":"12+30=","max_tokens":4}' -H 'Content-Type: application/json' http://127.0.0.1:8000/v1/completions"""


def needs_jax(args: argparse.Namespace) -> bool:
    """Never: the engine has a process of its own."""
    return False


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    add_fields(parser, ServeConfig, "server")


def run(args: argparse.Namespace) -> int:
    from sarathi_jax.serve.server import serve  # here: `--help` does not wait for FastAPI

    return serve(ServeConfig(**given_fields(args, ServeConfig)), engine_options(engine_config(args)), say_ready)


def engine_options(config: EngineConfig) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    return {field.name: value for field in fields(config) if (value := getattr(config, field.name)) != field.default}


def say_ready(front: "Front", url: str) -> None:
    """Through the log: whoever does not read it holds nothing up."""
    said = summary(front, url)
    logger.info("%s", table(said), extra={"is_plain": True, "fields": {**said, "message": "ready"}})
