"""Completions and chats of an OpenAI-compatible server, streamed: what is sent, and what its events say."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from sarathi_jax.client.connection import Answer, ConnectionFailed, HttpClient
from sarathi_jax.client.server_events import EventReader
from sarathi_jax.errors import ConfigError

type Message = Mapping[str, Any]
type Prompt = str | Sequence[int] | Sequence[Message]  # of completions the first two, of chats the last

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# What a server may be asked to say of usage, from most to nothing.
STREAM_OPTIONS: tuple[Mapping[str, bool] | None, ...] = (
    {"include_usage": True, "continuous_usage_stats": True},
    {"include_usage": True},
    None,
)
REJECTED = (429, 503)
MAX_QUOTED_CHARS = 300


class Failure(msgspec.Struct, frozen=True):
    """Why an answer is none. kind: `connect`, `timeout`, `disconnect`, `http_<status>`, `error_event`, `cut`, `not_a_stream` or `bad_event`."""

    kind: str
    message: str
    status: int = 0

    @property
    def is_rejection(self) -> bool:
        """The server has too much to do, or isn't ready."""
        return self.status in REJECTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What all requests have in common.

    fields: of the body, beside those that are always there; one that is None is left out.
    stream_options: one of STREAM_OPTIONS.
    """

    model: str
    is_chat: bool
    fields: Mapping[str, Any] = field(default_factory=dict)
    stream_options: Mapping[str, bool] | None = None

    @property
    def path(self) -> str:
        return CHAT if self.is_chat else COMPLETIONS

    def body(self, prompt: Prompt, max_tokens: int | None) -> bytes:
        """JSON."""
        fields = {
            "model": self.model,
            "messages" if self.is_chat else "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": self.stream_options,
            **self.fields,
        }
        return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)


class Reply:
    """One answer as it comes. Times are those of `time.perf_counter`.

    token_times_s: when each chunk with new tokens came; most servers send one a token.
    num_output_tokens: by the server's usage, or None: then a chunk is taken for a token.
    """

    def __init__(self, on_text: Callable[[str], None] | None = None) -> None:
        self.token_times_s: list[float] = []
        self.text = ""
        self.num_prompt_tokens: int | None = None
        self.num_output_tokens: int | None = None
        self.has_continuous_usage = False
        self.finish_reason: str | None = None
        self.failure: Failure | None = None
        self._on_text = on_text
        self._reader = EventReader()
        self._is_done = False

    def feed(self, piece: bytes) -> None:
        """Take in a piece of the stream."""
        now_s = time.perf_counter()
        for data in self._reader.feed(piece):
            if data == b"[DONE]":
                self._is_done = True
            elif self.failure is None:
                self._take(data, now_s)

    def end(self, answer: Answer) -> None:
        """The server has said all: look whether that is an answer."""
        if self.failure is not None:
            return
        if answer.status != 200:
            self.failure = Failure(f"http_{answer.status}", error_text(answer), answer.status)
        elif not answer.is_stream:
            got = answer.headers.get("content-type", "no content type")
            self.failure = Failure("not_a_stream", f"an answer must be text/event-stream, got {got}", 200)
        elif not (self._is_done or self.finish_reason):
            self.failure = Failure("cut", "the stream ended without finish_reason and [DONE]", 200)

    def _take(self, data: bytes, now_s: float) -> None:
        try:
            event = _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.failure = Failure("bad_event", f"an event must be a chunk in JSON, got {_quoted(data)} ({error})", 200)
            return
        if event.error is not None:
            self.failure = Failure("error_event", _error_message(event.error), 200)
            return
        text, has_token = self._read_choices(event.choices or ())
        if event.usage is not None:
            has_token = self._read_usage(event.usage, bool(event.choices), has_token)
        if has_token:
            self.token_times_s.append(now_s)
        if text:
            self.text += text
            if self._on_text is not None:
                self._on_text(text)

    def _read_choices(self, choices: Sequence[_Choice]) -> tuple[str, bool]:
        """Returns: text of the answer, and whether there was anything that tokens make."""
        text, has_token = "", False
        for choice in choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            new = choice.text or ""
            if choice.delta is not None:
                delta = choice.delta
                new = delta.content or ""
                has_token |= bool(delta.reasoning_content or delta.reasoning or delta.tool_calls)
            has_token |= bool(new)
            text += new
        return text, has_token

    def _read_usage(self, usage: _Usage, is_chunk: bool, has_token: bool) -> bool:
        """Where each chunk has a count, it tells of tokens without a text of their own, too."""
        before = self.num_output_tokens or 0
        if usage.prompt_tokens is not None:
            self.num_prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.num_output_tokens = usage.completion_tokens
            if is_chunk and not self._is_done and self.finish_reason is None:
                self.has_continuous_usage = True
            if is_chunk and self.has_continuous_usage:
                return has_token or usage.completion_tokens > before
        return has_token


async def ask(
    client: HttpClient,
    asking: Asking,
    prompt: Prompt,
    max_tokens: int | None,
    *,
    timeout_s: float | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Reply:
    """Send one request and read its stream. A failure is in the reply. on_text: called with each piece of the answer's text."""
    reply = Reply(on_text)
    try:
        body = asking.body(prompt, max_tokens)
        reply.end(await client.request("POST", asking.path, body, on_data=reply.feed, timeout_s=timeout_s))
    except ConnectionFailed as error:
        reply.failure = reply.failure or Failure(
            error.kind, str(error)
        )  # an error event goes before the end that follows it
    return reply


async def only_model(client: HttpClient) -> str:
    """The name of the first model that a server has. Raises: ConfigError if it does not say."""
    try:
        answer = await client.request("GET", "/v1/models", timeout_s=30.0)
    except ConnectionFailed as error:
        raise unreachable(client, str(error)) from error
    if answer.status != 200:
        raise ConfigError(f"the server must say what models it has, got {error_text(answer)}: pass --model.")
    with suppress(ValueError, TypeError, KeyError, IndexError):
        return str(json.loads(answer.body)["data"][0]["id"])
    raise ConfigError(f"the server must list its models, got {_quoted(bytes(answer.body))}: pass --model.")


def unreachable(client: HttpClient, reason: str) -> ConfigError:
    """The error of a server that is not there."""
    address = f"{client.url.scheme}://{client.url.netloc.rpartition('@')[2]}"
    return ConfigError(f"a server must answer at {address}, got {reason}: start it, or correct --url.")


def error_text(answer: Answer) -> str:
    """What an answer says is wrong, on one line: OpenAI's error object, or what there is."""
    text = _quoted(bytes(answer.body)) if answer.body else "no more words"
    with suppress(ValueError):
        value = json.loads(answer.body)
        if isinstance(value, dict):
            found = cast("dict[str, Any]", value)
            text = _error_message(found.get("error") or found.get("detail") or found.get("message") or found)
    return f"HTTP {answer.status}: {text}"


def _error_message(error: Any) -> str:
    message = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else None
    return " ".join(str(message if message is not None else error).split())[:MAX_QUOTED_CHARS]


def _quoted(data: bytes) -> str:
    return repr(" ".join(data[:MAX_QUOTED_CHARS].decode("utf-8", "replace").split()))
