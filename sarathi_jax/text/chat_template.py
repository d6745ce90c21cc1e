"""A model's chat template: messages in, prompt text out, by a worker process with a time limit, a memory limit and an
output limit.

The template comes with the checkpoint, so it is a stranger's program. jinja2's immutable sandbox keeps it from reaching
Python's insides, but bounds neither loops nor memory; hence the process (`template_worker.py`). Knows nothing of
tokens."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from sarathi_jax.errors import ModelError, RequestError
from sarathi_jax.text.model_files import named_special_tokens, read_bounded_text, read_tokenizer_config
from sarathi_jax.text.worker_process import WorkerProcess, WorkerProcessError

type Message = Mapping[str, Any]

DEFAULT_NAME = "default"
TOOL_USE_NAME = "tool_use"
MAX_TEMPLATE_BYTES = 2**20
MAX_OUTPUT_CHARS = 4 * 2**20
MAX_QUOTED_CHARS = 200
# Processor time of one render. Real templates take a few milliseconds.
DEADLINE_S = 1.0
GROWTH_BYTES = 1 << 30
WORKER_PATH = Path(__file__).with_name("template_worker.py")


class ChatTemplate:
    """The chat templates of one model, by name. Safe to share between threads: renders take turns, and none takes
    longer than its limit.

    The worker process starts with the first render and ends with this object, or by `close`.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        max_output_chars: int = MAX_OUTPUT_CHARS,
    ) -> None:
        """Args:
          sources: name -> jinja2 source; "default" must be there, "tool_use" is taken where a request has tools.
          special_tokens: `bos_token`, `eos_token`, ... -> text, for the template to use.
          deadline_s: processor time one render may take.
          max_output_chars: length a rendered prompt may have.
        Raises: ModelError if there is no default template."""
        if DEFAULT_NAME not in sources:
            raise ModelError(
                f"a chat template named {DEFAULT_NAME!r} is needed, got {sorted(sources)}: rename one of them."
            )
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens or {})
        self._max_output_chars = max_output_chars
        self._deadline_s = deadline_s
        self._process = WorkerProcess(
            WORKER_PATH,
            {"sources": dict(sources), "max_chars": max_output_chars},
            deadline_s=deadline_s,
            growth_bytes=GROWTH_BYTES,
            # A character takes at most 12 bytes of JSON: two escapes of a surrogate pair.
            max_reply_bytes=12 * max_output_chars + 4096,
        )
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path | str) -> "ChatTemplate | None":
        """The templates of a model folder, or None where it has none. Raises: ModelError if they can't be read."""
        folder = Path(folder)
        tokenizer_config = read_tokenizer_config(folder)
        sources = _read_sources(folder, tokenizer_config)
        return cls(sources, named_special_tokens(tokenizer_config)) if sources else None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for a conversation.

        Args:
          messages: at least one, each with `role` and what the template needs beside it; plain JSON values.
          tools: functions the model may call, in OpenAI's form.
          add_generation_prompt: end with the words that make the model answer.
        Raises: RequestError if the messages are not of that form, if the template refuses them, or if it passes a limit
          with them; ModelError if the template itself is wrong or unsafe."""
        _check_messages(messages)
        name = self._name(has_tools=bool(tools))
        variables = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            frame = json.dumps({"template": name, "variables": self._special_tokens | variables}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"messages and tools must be plain JSON values, got {error}: convert them.", param="messages"
            ) from error
        with self._lock:
            try:
                reply = self._process.ask(frame)
            except WorkerProcessError as error:
                raise self._over_limit(str(error)) from error
        return reply["text"] if "text" in reply else self._raise(reply["error"], reply["message"][:MAX_QUOTED_CHARS])

    def source(self, *, has_tools: bool) -> str:
        """The template that is taken."""
        return self._sources[self._name(has_tools=has_tools)]

    def _name(self, *, has_tools: bool) -> str:
        return TOOL_USE_NAME if has_tools and TOOL_USE_NAME in self._sources else DEFAULT_NAME

    def close(self) -> None:
        """End the worker process. A later render starts a new one."""
        with self._lock:
            self._process.close()

    def _raise(self, kind: str, message: str) -> str:
        if kind == "syntax":
            raise ModelError(
                f"the model's chat template must be valid jinja2, got {message}: correct chat_template.jinja."
            )
        if kind == "unsafe":
            raise ModelError(
                f"the model's chat template must not leave its sandbox, got {message}: don't trust this model folder."
            )
        if kind == "too_long":
            raise RequestError(
                f"a rendered prompt must have at most {self._max_output_chars} characters, got {message}: send less.",
                param="messages",
            )
        raise RequestError(
            f"the model's chat template must accept the messages, got {message!r}: correct the messages.",
            param="messages",
        )

    def _over_limit(self, message: str) -> RequestError:
        return RequestError(
            f"the model's chat template must render within {self._deadline_s:g} s and its memory limit, got {message}:"
            " send less, or correct the template.",
            param="messages",
        )


def _check_messages(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError(
            f"messages must be a list of at least one message, got {str(cast('object', messages))[:80]!r}: add one.",
            param="messages",
        )
    for index, message in enumerate(cast("Sequence[object]", messages)):
        if not isinstance(message, Mapping) or not isinstance(cast("Message", message).get("role"), str):
            raise RequestError(
                f"messages[{index}] must be an object with a role, got {str(cast('object', message))[:80]!r}:"
                " add its role and content.",
                param="messages",
            )


def _read_sources(folder: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """Name -> source. A file goes before an entry of the configuration, as it does on the hub."""
    sources = _read_entry(folder / "tokenizer_config.json", tokenizer_config.get("chat_template"))
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        sources[path.stem] = read_bounded_text(path, MAX_TEMPLATE_BYTES)
    if (folder / "chat_template.jinja").is_file():
        sources[DEFAULT_NAME] = read_bounded_text(folder / "chat_template.jinja", MAX_TEMPLATE_BYTES)
    return sources


def _read_entry(path: Path, entry: object) -> dict[str, str]:
    """The `chat_template` of a tokenizer's configuration: nothing, one source, or a list of named ones."""
    if entry is None or isinstance(entry, str):
        return {} if entry is None else {DEFAULT_NAME: entry}
    if not isinstance(entry, list):
        raise ModelError(f"{path}: chat_template must be a string or a list, got {type(entry).__name__}: correct it.")
    sources: dict[str, str] = {}
    for each in cast("list[dict[str, Any]]", entry):
        try:
            name, source = each["name"], each["template"]
        except (TypeError, KeyError) as error:
            raise ModelError(
                f"{path}: a chat_template in a list must have name and template, got {str(each)[:80]!r}: correct it."
            ) from error
        sources[str(name)] = str(source)
    return sources
