"""`sarathi-jax`: finds the command, runs it, and turns errors into one line and an exit code.

0 done; 1 the engine failed, or `doctor` found a problem; 2 something the user can mend: words, files, requests, memory; 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol, cast

from sarathi_jax import __version__
from sarathi_jax.cli.model_options import place_of
from sarathi_jax.cli.options import Parser, UsageError, did_you_mean
from sarathi_jax.cpu_defaults import claim_process
from sarathi_jax.errors import EngineError, SarathiError
from sarathi_jax.gpu_defaults import apply_defaults, import_jax_quietly

# A command's module is its words with "_" between them.
COMMANDS = {
    "generate": "complete prompts, from the command line or from standard input",
    "chat": "talk with a model in the terminal",
    "serve": "answer over HTTP, as OpenAI's API has it, with a page that shows the engine at work",
    "bench latency": "time a small batch of equal requests, repeatedly",
    "bench throughput": "run many requests, from given lengths or from a trace",
    "bench profile": "measure what steps take on this machine, and which token budget keeps a latency goal",
    "bench serve": "put a load on an OpenAI-compatible server: latencies, goodput, capacity",
    "bench stalls": "show which scheduling policies stall, under steady decodes and arriving prompts",
    "explain": "say why a request of a recorded run waited, and why its tokens came late",
    "simulate paper": "run Sarathi-Serve's evaluation in the simulator, beside what the paper says",
    "simulate replay": "make a recorded run again: the same decisions, byte for byte",
    "simulate run": "one load on a deployment that need not be here, by the scheduler that serves: latencies, stalls, bubbles",
    "simulate capacity": "the highest rate that keeps a latency goal, of each policy, budget and goal",
    "follow": "be one of several processes that run a model together",
    "plan": "what a model takes on GPUs that need not be here: memory, time of its steps, collectives",
    "kernels report": "what the compilers make of each GPU kernel, for GPUs that need not be here",
    "kernels step": "compile a model's whole step for GPUs that need not be here",
    "convert": "write a model as an Orbax checkpoint, which any mesh loads faster",
    "doctor": "report versions, devices and what stands in the way here, and check a model",
}
WORDS = {
    "kernels report": "",
    "kernels step": "",
    "bench serve": "",
    "simulate paper": "",
    "convert": "SRC DST ",
    "explain": "RECORD REQUEST ",
    "simulate replay": "RECORD ",
}  # the others take [MODEL]


class Command(Protocol):
    """What a command's module has; its docstring and EXAMPLES make up its help. One that can do without jax also has `needs_jax(args) -> bool`."""

    __doc__: str | None
    EXAMPLES: str
    add_arguments: Callable[[Parser], None]
    run: Callable[..., int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = command_name(words)
    try:
        code = run_command(name, words[len(name.split()) :]) if name else answer_without_command(words)
        sys.stdout.flush()
        return code
    except SarathiError as error:
        print(f"{f'sarathi-jax {name}'.strip()}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, EngineError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left (`| head`). Python would complain once more when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def command_name(words: Sequence[str]) -> str:
    """The command that the words begin with, or ""."""
    return next((name for name in COMMANDS if list(words[: len(name.split())]) == name.split()), "")


def answer_without_command(words: Sequence[str]) -> int:
    """Print help, of all commands or of a group such as `bench`, or the version. Raises: UsageError for anything else."""
    group = words[0] if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else ""
    rest = words[1:] if group else words
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(overview({name: summary for name, summary in COMMANDS.items() if name.startswith(group)}))
        return 0 if rest else 2
    if rest[0] in ("-V", "--version"):
        print(f"sarathi-jax {__version__}")
        return 0
    is_option = rest[0].startswith("-")
    got = rest[0] if is_option else f"{group} {rest[0]}".strip()
    unknown = did_you_mean(*("option", got, ["--help", "--version"]) if is_option else ("command", got, COMMANDS))
    raise UsageError(f"{unknown} See `sarathi-jax --help`.")


def overview(commands: dict[str, str]) -> str:
    lines = ["usage: sarathi-jax COMMAND [MODEL] [options]", "", "A JAX inference engine that never stalls a stream."]
    lines += ["", "commands:", *(f"  {name:<18}{summary}" for name, summary in commands.items()), ""]
    lines += ["`sarathi-jax COMMAND --help` lists its options, with examples. MODEL is `demo`, a folder, or a hub id."]
    return "\n".join(lines)


def command_module(name: str) -> Command:
    return cast(Command, import_module(f"sarathi_jax.cli.{name.replace(' ', '_')}"))


def needs_jax(command: Command, args: argparse.Namespace) -> bool:
    """Whether jax has to be there, told what it needs to know, when the command runs with these options."""
    return getattr(command, "needs_jax", lambda args: True)(args)


def run_command(name: str, words: Sequence[str]) -> int:
    command = command_module(name)
    prog = f"sarathi-jax {name}"
    usage = f"{prog} {WORDS.get(name, '[MODEL] ')}[options]"
    parser = Parser(prog=prog, usage=usage, description=command.__doc__, epilog=f"examples:\n{command.EXAMPLES}")
    command.add_arguments(parser)
    try:
        args = parser.parse(words)
    except SystemExit as printed_help:
        return int(printed_help.code or 0)
    place = place_of(args)
    if place is not None and not place.is_leader:
        command = command_module("follow")  # whatever the command: process 0 runs it
    if needs_jax(command, args):
        apply_defaults()
        import_jax_quietly()
        claim_process()
    return command.run(args)


if __name__ == "__main__":
    sys.exit(main())
