"""Talk with a model in the terminal: one line a turn, the answer as it comes, the whole conversation as context.

/reset forgets the conversation, /exit or end of input leaves. Reads piped lines just as well: one answer a line, on standard output.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from sarathi_jax.cli.model_options import add_model_arguments, engine_config, running_engine
from sarathi_jax.cli.options import Parser, add_fields, given_fields
from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sarathi_jax.llm import LLM

EXAMPLES = """  sarathi-jax chat demo
  sarathi-jax chat demo --system 'Answer in one word.' --temperature 0.8
  printf 'What is 12+30?\\n/exit\\n' | sarathi-jax chat"""

# One sample a turn; an answer may fill what is left of the model's length; greedy unless asked for.
SKIPPED = ("seed", "n", "logprobs", "prompt_logprobs", "ignore_eos", "structured")
DEFAULTS = {"temperature": 0.0, "max_tokens": None}


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    add_fields(parser, SamplingParams, "sampling", skip=SKIPPED, defaults=DEFAULTS)


def run(args: argparse.Namespace) -> int:
    config = engine_config(args)
    params = SamplingParams(**given_fields(args, SamplingParams, skip=SKIPPED, defaults=DEFAULTS))
    is_terminal = sys.stdin.isatty()
    with running_engine(config) as llm:
        if is_terminal:
            print("/reset forgets the conversation, /exit leaves.")
        return converse(llm, params, args.system, user_lines(is_terminal))


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


def converse(llm: "LLM", params: SamplingParams, system: str | None, lines: Iterator[str]) -> int:
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
                answer = stream_answer(llm, [*messages, turn], params)
            except RequestError as error:
                print(f"error: {error} /reset forgets the conversation.", file=sys.stderr)
                code = 2
                continue
            messages += [turn, {"role": "assistant", "content": answer}]
    return code


def stream_answer(llm: "LLM", messages: list[dict[str, str]], params: SamplingParams) -> str:
    """Print the answer as it comes. Returns the whole of it."""
    deltas: list[str] = []
    for event in llm.stream_chat(messages, params):
        deltas.append(event.text_delta)
        print(event.text_delta, end="", flush=True)
    print()
    return "".join(deltas)
