"""The options that describe a workload, and the requests they ask for."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sarathi_jax.cli.options import UsageError
from sarathi_jax.simulation.arrivals import PROCESSES, with_arrivals
from sarathi_jax.simulation.chats import Chats
from sarathi_jax.simulation.lengths import DISTRIBUTIONS, FITTED, Fitted, Synthetic
from sarathi_jax.simulation.traces import read_trace
from sarathi_jax.simulation.workloads import RequestShape, fit_within

DEFAULT_NUM_REQUESTS = 64
LENGTHS = (*DISTRIBUTIONS, *FITTED, "chats")
# Which lengths an option of theirs is about.
OWN_OPTIONS = {
    "prompt_tokens": DISTRIBUTIONS,
    "output_tokens": DISTRIBUTIONS,
    "zipf_theta": DISTRIBUTIONS,
    "mean_rounds": ("chats",),
    "think_s": ("chats",),
    "system_tokens": ("chats",),
}


def add_workload_arguments(
    parser: argparse.ArgumentParser,
    *,
    lengths: str = "fixed",
    num_requests: int = DEFAULT_NUM_REQUESTS,
    has_rate: bool = True,
) -> None:
    """lengths, num_requests: the command's defaults. has_rate: whether the command takes a rate, or finds one itself."""
    synthetic, chats = Synthetic(), Chats()
    parser.set_defaults(default_lengths=lengths, default_num_requests=num_requests, request_rate=None)
    group = parser.add_argument_group("workload")

    def add(flag: str, kind: type, metavar: str, text: str) -> None:
        group.add_argument(flag, type=kind, metavar=metavar, help=text)

    add("--num-requests", int, "N", f"requests to send (default: {num_requests}, or all of the trace)")
    group.add_argument(
        "--lengths",
        choices=LENGTHS,
        help=f"how lengths are drawn (default: {lengths}); sharegpt and arxiv are those of Sarathi-Serve's evaluation, chats conversations",
    )
    add("--prompt-tokens", int, "N", f"the longest prompt (default: {synthetic.max_prompt_tokens})")
    add("--output-tokens", int, "N", f"the longest output (default: {synthetic.max_output_tokens})")
    add("--zipf-theta", float, "X", f"of zipf: higher has more short ones (default: {synthetic.zipf_theta})")
    add("--mean-rounds", float, "X", f"of chats: rounds of a conversation (default: {chats.mean_rounds:g})")
    add(
        "--think-s",
        float,
        "X",
        f"of chats: mean seconds from an answer to the next round (default: {chats.mean_think_s:g})",
    )
    add("--system-tokens", int, "N", f"of chats: what all of them begin with (default: {chats.num_system_tokens})")
    add(
        "--max-total-tokens",
        int,
        "N",
        "shrink requests to so many tokens, prompt and output together, and end conversations there",
    )
    add(
        "--trace",
        Path,
        "FILE",
        "a CSV file: arrival_s,prompt_tokens,output_tokens, or num_prefill_tokens,num_decode_tokens",
    )
    add("--shuffle-seed", int, "N", "of a trace: put its requests into another order first")
    if has_rate:
        add("--request-rate", float, "X", "arrivals a second, instead of all at once or the trace's")
    group.add_argument(
        "--arrivals", choices=PROCESSES, help="what the arrivals' rate is the rate of (default: poisson)"
    )
    add("--gap-variation", float, "X", "of gamma: coefficient of variation of the gaps, 1 is Poisson (default: 1)")
    group.add_argument(
        "--workload-seed", type=int, default=0, metavar="N", help="of lengths, arrivals, prompts (default: 0)"
    )


def workload(args: argparse.Namespace) -> list[RequestShape]:
    """What the options ask for. Raises: ConfigError."""
    shapes = _traced(args) if args.trace else _drawn(args)
    if args.max_total_tokens is not None:
        shapes = fit_within(shapes, args.max_total_tokens)
    process, variation = args.arrivals or "poisson", args.gap_variation
    if args.request_rate is None:
        if args.arrivals or variation is not None:
            raise UsageError("--arrivals and --gap-variation are about a rate, got none: add --request-rate.")
        return shapes
    if variation is not None and process != "gamma":
        raise UsageError(
            f"--gap-variation is of gamma, got --arrivals {process}: leave it out, or pass --arrivals gamma."
        )
    return with_arrivals(
        shapes, args.request_rate, args.workload_seed, process, 1.0 if variation is None else variation
    )


def _traced(args: argparse.Namespace) -> list[RequestShape]:
    for name in ("lengths", *OWN_OPTIONS):
        if getattr(args, name) is not None:
            raise UsageError(f"--trace brings its own lengths: leave out {_flag(name)}.")
    return read_trace(args.trace, args.num_requests, args.shuffle_seed)


def _drawn(args: argparse.Namespace) -> list[RequestShape]:
    lengths = args.lengths or args.default_lengths
    if args.shuffle_seed is not None:
        raise UsageError("--shuffle-seed is of a trace, got none: leave it out, or add --trace.")
    for name, owners in OWN_OPTIONS.items():
        if getattr(args, name) is not None and lengths not in owners:
            raise UsageError(f"{_flag(name)} is of {', '.join(owners)}, got --lengths {lengths}: leave it out.")
    num_requests = args.default_num_requests if args.num_requests is None else args.num_requests
    return _generator(lengths, args).draw(num_requests, args.workload_seed)


def _generator(lengths: str, args: argparse.Namespace) -> Synthetic | Fitted | Chats:
    if lengths in FITTED:
        return FITTED[lengths]
    if lengths == "chats":
        names = {
            "mean_rounds": "mean_rounds",
            "mean_think_s": "think_s",
            "num_system_tokens": "system_tokens",
            "max_total_tokens": "max_total_tokens",
        }
        return Chats(**_given(args, names))
    names = {"max_prompt_tokens": "prompt_tokens", "max_output_tokens": "output_tokens", "zipf_theta": "zipf_theta"}
    return Synthetic(distribution=lengths, **_given(args, names))


def _given(args: argparse.Namespace, names: Mapping[str, str]) -> dict[str, Any]:
    """The fields whose options were given."""
    return {field: getattr(args, name) for field, name in names.items() if getattr(args, name) is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
