"""A conversation as prompt ids: only the template's own text may become special tokens, never what the messages say."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sarathi_jax.errors import RequestError
from sarathi_jax.text.chat_template import ChatTemplate, Message
from sarathi_jax.text.tokenizer import Tokenizer


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Prompt ids of a conversation. The template writes BOS itself where the model wants one; none is added.

    Raises: RequestError if the model has no template; RequestError, ModelError as `ChatTemplate.render` and
      `Tokenizer.encode_template`."""
    if template is None:
        raise RequestError(
            "a conversation needs the model's chat template, got a model without one: use its chat variant, add"
            " chat_template.jinja to its folder, or pass a plain prompt.",
            param="messages",
        )
    try:
        escaped_messages, escaped_tools = _escape(tokenizer, messages), _escape(tokenizer, tools)
    except RecursionError as error:
        raise RequestError("messages and tools must be nested less deeply: flatten them.", param="messages") from error
    return tokenizer.encode_template(template.render(escaped_messages, escaped_tools, add_generation_prompt))


def _escape(tokenizer: Tokenizer, value: Any) -> Any:
    """The same JSON value with the special tokens in all its strings, keys included, escaped."""
    if isinstance(value, str):
        return tokenizer.escape_special_tokens(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_escape(tokenizer, key): _escape(tokenizer, each) for key, each in items}
    if isinstance(value, list | tuple):
        return [_escape(tokenizer, each) for each in cast("Sequence[Any]", value)]
    return value
