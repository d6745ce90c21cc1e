"""What a server takes and tells, found by asking it before a load: how it counts tokens in streams, and how long a text is to its tokenizer."""

from dataclasses import replace

from sarathi_jax.client.connection import HttpClient
from sarathi_jax.client.openai_api import STREAM_OPTIONS, Asking, Failure, Prompt, Reply, ask, unreachable
from sarathi_jax.client.prompts import TextLength, fit_length, probe_text
from sarathi_jax.errors import ConfigError

NUM_PROBE_TOKENS = 4
# Letters of two texts; the longer one still fits into any context.
FEW, MANY = 32, 160
REFUSALS = (400, 404, 405, 422)


async def find_stream_options(
    client: HttpClient, asking: Asking, prompt: Prompt, timeout_s: float
) -> tuple[Asking, Reply]:
    """The same asking with the most of STREAM_OPTIONS that the server takes, and its reply to that. Raises: ConfigError if it answers none."""
    first: Failure | None = None
    for options in STREAM_OPTIONS:
        tried = replace(asking, stream_options=options)
        reply = await ask(client, tried, prompt, NUM_PROBE_TOKENS, timeout_s=timeout_s)
        if reply.failure is None:
            return tried, reply
        first = first or reply.failure
        if reply.failure.status not in REFUSALS:
            break
    assert first is not None, "every try failed"
    raise _refused(client, asking, first)


async def measure_text(client: HttpClient, asking: Asking, timeout_s: float) -> TextLength:
    """How many tokens texts take, by the server's usage; a token a letter if it does not say."""
    counts: list[tuple[int, int]] = []
    for num_letters in (FEW, MANY):
        text = probe_text(num_letters)
        reply = await ask(client, asking, as_prompt(asking, text), 1, timeout_s=timeout_s)
        if reply.failure is not None or reply.num_prompt_tokens is None:
            return TextLength()
        counts.append((num_letters, reply.num_prompt_tokens))
    return fit_length(counts[0], counts[1])


def as_prompt(asking: Asking, text: str) -> Prompt:
    """A text on its own."""
    return [{"role": "user", "content": text}] if asking.is_chat else text


def _refused(client: HttpClient, asking: Asking, failure: Failure) -> ConfigError:
    if failure.kind == "connect":
        return unreachable(client, failure.message)
    remedies = {
        401: "pass --api-key, or set OPENAI_API_KEY",
        403: "pass --api-key, or set OPENAI_API_KEY",
        429: "wait until it has less to do",
        503: "wait until it is ready",
    }
    remedy = remedies.get(failure.status, "see the server's log")
    if failure.status in REFUSALS:
        remedy = (
            "correct --url or --model, or say less of what is OpenAI's with additions: --no-ignore-eos, --prompts text"
        )
    return ConfigError(
        f"the server must answer a small request to {asking.path}, got {failure.message.rstrip('.')}: {remedy}."
    )
