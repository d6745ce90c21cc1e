"""The options of commands that talk to a server: where it is, which of its models, and the key."""

import argparse
import os

from sarathi_jax.client.connection import HttpClient

KEY_VARIABLES = ("SARATHI_JAX_API_KEY", "OPENAI_API_KEY")


def add_key_argument(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"of the server (default: {' or '.join(KEY_VARIABLES)}, where one is set)"
    )


def api_key(given: str | None) -> str | None:
    """The key to send: as given, or from the environment; None: none."""
    found = (os.environ.get(name) for name in KEY_VARIABLES)
    return given if given is not None else next((key for key in found if key), None)


def open_client(url: str, key: str | None) -> HttpClient:
    """Raises: ConfigError if the url is none."""
    key = api_key(key)
    return HttpClient(url, {"authorization": f"Bearer {key}"} if key else {})
