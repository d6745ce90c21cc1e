"""Talk with a model in the terminal: one line a turn, the answer as it comes, the whole conversation as context.

/reset forgets the conversation, /exit or end of input leaves. Reads piped lines just as well: one answer a line, on standard output. With --url the model is that of
an OpenAI-compatible server, and MODEL one of its names; options of sampling go to it, those of the engine are its own.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from sarathi_jax.cli.chat_server import add_server_arguments, server_answers
from sarathi_jax.cli.model_options import add_model_arguments, engine_config, running_engine
from sarathi_jax.cli.options import Parser, add_fields, given_fields
from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sarathi_jax.llm import LLM

EXAMPLES = """  sarathi-jax chat demo
  sarathi-jax chat --url http://127.0.0.1:8000
  sarathi-jax chat demo --system 'Answer in one word.' --temperature 0.8
  printf 'What is 12+30?\\n/exit\\n' | sarathi-jax chat"""

# Prints the answer to a conversation as it comes, and returns it. Raises: RequestError if there is none.
type Answer = Callable[[Sequence[dict[str, str]]], str]
# One sample a turn; an answer may fill what is left of the model's length; greedy unless asked for.
SKIPPED = ("seed", "n", "logprobs", "prompt_logprobs", "ignore_eos", "structured")
DEFAULTS = {"temperature": 0.0, "max_tokens": None}


def needs_jax(args: argparse.Namespace) -> bool:
    """Unless the model is a server's."""
    return args.url is None


def add_arguments(parser: Parser) -> None:
    add_server_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    add_fields(parser, SamplingParams, "sampling", skip=SKIPPED, defaults=DEFAULTS)


def run(args: argparse.Namespace) -> int:
    params = SamplingParams(**given_fields(args, SamplingParams, skip=SKIPPED, defaults=DEFAULTS))
    if args.url is not None:
        fields = given_fields(args, SamplingParams, skip=SKIPPED, defaults=DEFAULTS)
        with server_answers(args, fields) as answer:
            return talk(answer, args.system)
    with running_engine(engine_config(args)) as llm:
        return talk(partial(stream_answer, llm, params), args.system)


def talk(answer: Answer, system: str | None) -> int:
    """Answer what comes on standard input. Returns the exit code."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("/reset forgets the conversation, /exit leaves.")
    return converse(answer, system, user_lines(is_terminal))


def user_lines(is_terminal: bool) -> Iterator[str]:
    """What the user says, line by line; on a terminal with a prompt, and with line editing where Python has it."""
    if not is_terminal:
        for line in sys.stdin:
            yield line.removesuffix("\n")
        return
    with suppress(ImportError):
        importlib.import_module("readline")
    with suppress(EOFError):
        while True:
            yield input("> ")


def converse(answer: Answer, system: str | None, lines: Iterator[str]) -> int:
    """Answer line after line. Returns the exit code: 2 if a turn could not be answered."""
    beginning = [{"role": "system", "content": system}] if system else []
    messages, code = list(beginning), 0
    for line in lines:
        command = line.strip()
        if command == "/exit":
            break
        if command == "/reset":
            messages = list(beginning)
        elif command:
            turn = {"role": "user", "content": line}
            try:
                said = answer([*messages, turn])
            except RequestError as error:
                print(f"error: {error} /reset forgets the conversation.", file=sys.stderr)
                code = 2
                continue
            messages += [turn, {"role": "assistant", "content": said}]
    return code


def stream_answer(llm: "LLM", params: SamplingParams, messages: Sequence[dict[str, str]]) -> str:
    """Print the answer as it comes. Returns the whole of it."""
    deltas: list[str] = []
    for event in llm.stream_chat(messages, params):
        deltas.append(event.text_delta)
        print(event.text_delta, end="", flush=True)
    print()
    return "".join(deltas)
