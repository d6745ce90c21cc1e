"""Complete prompts with a model. Prompts come from --prompt (repeat it for a batch) or, without one, from standard input as a whole.

The text goes to standard output; progress and --stats go to standard error. `--seed` is the engine's: every request's own seed is drawn from it.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sarathi_jax.cli.model_options import add_model_arguments, engine_config, running_engine
from sarathi_jax.cli.options import Parser, UsageError, add_fields, given_fields
from sarathi_jax.cli.report import describe_run
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.structured import StructuredOutput

if TYPE_CHECKING:
    from sarathi_jax.llm import LLM
    from sarathi_jax.outputs import RequestOutput, StreamEvent

EXAMPLES = """  sarathi-jax generate demo --prompt '12+30=' --temperature 0
  sarathi-jax generate demo --prompt '12+30=' --prompt 'sort(5,3,8)=' --max-tokens 32 --json
  sarathi-jax generate demo --chat --stream --prompt 'Why are prompts split into chunks?' --max-tokens 64
  sarathi-jax generate demo --prompt 'The sky is' --choice blue --choice grey
  echo '7*8=' | sarathi-jax generate --stream --stats"""

SKIPPED = ("seed", "structured")


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; repeat it for several")
    parser.add_argument("--chat", action="store_true", help="a prompt is a user's message, put into the chat template")
    parser.add_argument("--stream", action="store_true", help="print the text as it comes (one prompt, one sample)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    parser.add_argument("--stats", action="store_true", help="say afterwards what the engine did")
    add_fields(parser, SamplingParams, "sampling", skip=SKIPPED)
    add_fields(parser, StructuredOutput, "structured output")


def run(args: argparse.Namespace) -> int:
    config = engine_config(args)
    form = given_fields(args, StructuredOutput)
    structured = StructuredOutput(**form) if form else None
    params = SamplingParams(**given_fields(args, SamplingParams, skip=SKIPPED), structured=structured)
    if args.stream and (len(args.prompt or ()) > 1 or params.n > 1 or args.json):
        raise UsageError(
            "--stream prints one sample of one prompt as it comes: leave it out for several, or for --json."
        )
    prompts = args.prompt or [read_standard_input()]
    with running_engine(config) as llm:
        if args.stream:
            stream_text(llm.stream_chat(as_chat(prompts[0]), params) if args.chat else llm.stream(prompts[0], params))
        else:
            print_outputs(prompts, complete(llm, prompts, params, is_chat=args.chat), is_json=args.json)
        if args.stats:
            sys.stdout.flush()
            print(f"\n{describe_run(llm.engine.records, llm.compile_ledger)}", file=sys.stderr)
    return 0


def read_standard_input() -> str:
    """All of it, without the newline at its end."""
    if sys.stdin.isatty():
        raise UsageError("there is no prompt: pass --prompt TEXT, or pipe text into standard input.")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input must be UTF-8 text, got {error}: convert it first.") from error


def as_chat(prompt: str) -> list[dict[str, str]]:
    """A conversation that begins with the prompt."""
    return [{"role": "user", "content": prompt}]


def stream_text(events: "Iterable[StreamEvent]") -> None:
    """The prompt itself is not repeated."""
    for event in events:
        print(event.text_delta, end="", flush=True)
    print()


def complete(llm: "LLM", prompts: Sequence[str], params: SamplingParams, *, is_chat: bool) -> "list[RequestOutput]":
    """Texts run together as one batch; conversations one after the other."""
    if is_chat:
        return [llm.chat(as_chat(prompt), params) for prompt in prompts]
    return llm.generate(prompts, params, progress=sys.stderr.isatty())


def print_outputs(prompts: Sequence[str], outputs: "Sequence[RequestOutput]", *, is_json: bool) -> None:
    """One prompt's only sample is printed as it is; several get a heading each."""
    for prompt, output in zip(prompts, outputs, strict=True):
        if is_json:
            print(json.dumps(as_json(prompt, output)))
            continue
        for sample in output.outputs:
            if len(output.outputs) > 1:
                print(f"--- {prompt!r} sample {sample.index}")
            elif len(outputs) > 1:
                print(f"--- {prompt!r}")
            print(sample.text)


def as_json(prompt: str, output: "RequestOutput") -> dict[str, Any]:
    return {
        "request_id": output.request_id,
        "prompt": prompt,
        "prompt_token_ids": list(output.prompt_token_ids),
        "outputs": [asdict(sample) for sample in output.outputs],
        "prompt_logprobs": output.prompt_logprobs,
    }
