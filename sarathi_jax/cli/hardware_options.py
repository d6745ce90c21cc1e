"""The part of the command line that says which model runs on which GPUs, hosts and links: of the commands for which none of them need be here."""

import argparse
import re
from typing import Any

from sarathi_jax.cli.model_options import DEFAULT_MODEL
from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.simulation.hardware import device_names


def add_shape_arguments(parser: Parser) -> None:
    """MODEL, or --model: of which the shape alone matters."""
    text = f"a built-in shape, demo, a folder, or a hub id (default: {DEFAULT_MODEL})"
    parser.add_argument("model_word", nargs="?", metavar="MODEL", help=text)
    parser.add_argument("--model", metavar="MODEL", help="the same, as a flag")


def add_hardware_arguments(parser: Parser) -> Any:
    """Returns: the group, for what a command has besides."""
    group = parser.add_argument_group("hardware")
    names = ", ".join(device_names())
    group.add_argument("--device", default="a100-80g", metavar="GPU", help=f"{names} (default: a100-80g)")
    group.add_argument(
        "--topology", metavar="HOSTSxGPUS", help="as in 2x4 (default: one host, as many GPUs as the mesh)"
    )
    group.add_argument(
        "--system", metavar="NAME", help="of hosts and their links (default: the GPU's, with hosts that large)"
    )
    return group


def read_topology(args: argparse.Namespace) -> tuple[int, int] | None:
    """Hosts, and GPUs of each; None if it was not given. Raises: UsageError if it is not two numbers with an x between them."""
    if args.topology is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", args.topology)
    if not match:
        raise UsageError(f"--topology must be HOSTSxGPUS, got {args.topology!r}: write 2x4 for two hosts of four GPUs.")
    return int(match[1]), int(match[2])
