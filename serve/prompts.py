"""From text and messages to token ids: short texts at once, long ones in a thread, and what can't fit is refused before any of that."""

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sarathi_jax.errors import ModelError, ModelNotFoundError, RequestError
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.schemas import Message
from sarathi_jax.text.chat import encode_chat
from sarathi_jax.text.chat_template import ChatTemplate
from sarathi_jax.text.tokenizer import Tokenizer
from sarathi_jax.text.tool_calls import FORMATS, ToolCallFormat, detect_format

INLINE_CHARS = 4096
NUM_THREADS = 4
DEADLINE_S = 30.0


class Prompts:
    """One model's tokenizer and chat template.

    tokenizer: None: the model has none, and prompts must be token ids.
    """

    def __init__(self, folder: Path | None) -> None:
        """Raises: ModelError if the folder's files are wrong."""
        self.tokenizer = None if folder is None else _load_tokenizer(folder)
        self._template = None if folder is None else ChatTemplate.from_folder(folder)
        self._threads = ThreadPoolExecutor(NUM_THREADS, "prompts")
        self._max_token_bytes = 1
        if (tokenizer := self.tokenizer) is not None:
            lengths = (len(tokenizer.token_bytes(token_id)) for token_id in range(tokenizer.vocab_size))
            self._max_token_bytes = max(1, *lengths)

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def tool_format(self, asked: str) -> ToolCallFormat | None:
        """How the model writes calls of tools; None if its template does not tell it of any. asked: a format's name, or "auto"."""
        if self._template is None:
            return None
        name = detect_format(self._template.source(has_tools=True)) if asked == "auto" else asked
        return None if name is None else FORMATS[name]

    async def encode(self, text: str, *, max_tokens: int, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. max_tokens: how many can be of use. Raises: RequestError, ApiError."""
        tokenizer = self.need_tokenizer("prompt")
        self._check_size(len(text.encode(errors="replace")), max_tokens, "prompt")
        if len(text) <= INLINE_CHARS:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await self._in_thread(lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens))

    async def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation. Raises: RequestError, ApiError."""
        tokenizer, plain = self.need_tokenizer("messages"), [_plain(message) for message in messages]
        num_bytes = sum(len(str(message.get("content", "")).encode(errors="replace")) for message in plain)
        self._check_size(num_bytes, max_tokens, "messages")

        def encode() -> list[int]:
            try:
                return encode_chat(tokenizer, self._template, plain, tools, add_generation_prompt)
            except ModelError as error:
                raise RequestError(str(error), param="messages") from error

        return await self._in_thread(encode)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Raises: ApiError if the model has no tokenizer."""
        return self.need_tokenizer("tokens").decode(token_ids, skip_special_tokens=skip_special_tokens)

    def need_tokenizer(self, param: str) -> Tokenizer:
        """Raises: ApiError if the model has none."""
        if self.tokenizer is None:
            message = f"{param} must be token ids: this model has no tokenizer."
            raise ApiError(400, "unsupported_value", message, param=param)
        return self.tokenizer

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._template is not None:
            self._template.close()

    def _check_size(self, num_bytes: int, max_tokens: int, param: str) -> None:
        """Refuse what has more bytes than so many of the longest tokens, without a look at it."""
        least = -(-num_bytes // self._max_token_bytes)
        if least > max_tokens:
            raise RequestError(
                f"{param} must have at most {max_tokens} tokens, got at least {least} ({num_bytes} bytes). Shorten it.",
                param=param,
                code="context_length_exceeded",
            )

    async def _in_thread[T](self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.wait_for(future, DEADLINE_S)
        except TimeoutError as error:
            raise ApiError(
                504, "deadline_exceeded", f"The prompt was not tokenized within {DEADLINE_S:.0f} s."
            ) from error


def _load_tokenizer(folder: Path) -> Tokenizer | None:
    try:
        return Tokenizer.from_folder(folder)
    except ModelNotFoundError:
        return None


def _plain(message: Message) -> dict[str, Any]:
    """As chat templates have it: one text a message, and no field that was not given."""
    plain = message.model_dump(exclude_none=True, exclude={"refusal"})
    if isinstance(message.content, list):
        plain["content"] = "".join(part.text for part in message.content)
    elif message.content is None:
        plain["content"] = ""
    for call in plain.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    if message.role == "developer":
        plain["role"] = "system"
    return plain


def _arguments(text: str) -> Any:
    """A call's arguments as templates want them, which write them as JSON themselves; text that is no JSON object stays as it is."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
