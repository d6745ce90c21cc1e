"""`chat` with the model of an OpenAI-compatible server in place of one of our own."""

import argparse
import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sarathi_jax.cli.model_options import named_model
from sarathi_jax.cli.options import Parser, UsageError, given_fields
from sarathi_jax.cli.server_options import add_key_argument, open_client
from sarathi_jax.client.openai_api import Asking, ask, only_model
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import RequestError

SENT_ENGINE_FIELDS = ("seed",)  # which a request has, too


def add_server_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--url", help="of a server to talk with, in place of a model of one's own")
    add_key_argument(group)


@contextmanager
def server_answers(
    args: argparse.Namespace, fields: Mapping[str, Any]
) -> Iterator[Callable[[Sequence[dict[str, str]]], str]]:
    """What answers a conversation, printing the answer as it comes, while the connection is open.

    fields: of sampling, for every request.
    Raises: ConfigError if the server is not there, or options are the engine's; RequestError, from the answers, if it gives none.
    """
    engine = given_fields(args, EngineConfig, skip=("model",))
    for name in engine.keys() - set(SENT_ENGINE_FIELDS):
        raise UsageError(f"with --url the engine is the server's, got --{name.replace('_', '-')}: leave it out.")
    client = open_client(args.url, args.api_key)
    with asyncio.Runner() as runner:
        try:
            model = named_model(args) or runner.run(only_model(client))
            asking = Asking(
                model=model, is_chat=True, fields={**fields, **engine, "max_tokens": fields.get("max_tokens")}
            )

            def answer(messages: Sequence[dict[str, str]]) -> str:
                reply = runner.run(ask(client, asking, messages, None, on_text=_print_piece))
                print()
                if reply.failure is not None:
                    raise RequestError(f"{reply.failure.message.rstrip('.')}.")
                return reply.text

            yield answer
        finally:
            runner.run(client.close())


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)
