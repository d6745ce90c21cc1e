"""The tools that a request lets its answer call: checked, told to the model, and made into what its output has to be."""

import secrets
import string
from typing import Any, NamedTuple

from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.front import Front
from sarathi_jax.serve.output_form import OutputForm, read_form, structured
from sarathi_jax.serve.output_schemas import NamedTool
from sarathi_jax.serve.schemas import ChatBody
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.tokenizer import Tokenizer
from sarathi_jax.text.tool_call_parser import ToolCallParser
from sarathi_jax.text.tool_calls import Tool, ToolCallFormat, calls_grammar, closed_schema

ID_CHARACTERS = string.ascii_letters + string.digits
ID_PREFIX = "call_"


class ToolUse(NamedTuple):
    """descriptions: for the chat template. has_special_mark: calls begin with a special token, which has to be seen in the text."""

    form: ToolCallFormat
    names: tuple[str, ...]
    descriptions: list[dict[str, Any]]
    has_special_mark: bool

    def new_parser(self) -> ToolCallParser:
        return ToolCallParser(self.form, self.names, self._new_id)

    def _new_id(self) -> str:
        prefix = ID_PREFIX if self.form.id_chars > 2 * len(ID_PREFIX) else ""
        return prefix + "".join(secrets.choice(ID_CHARACTERS) for _ in range(self.form.id_chars - len(prefix)))


def read_chat_form(front: Front, body: ChatBody) -> tuple[OutputForm, ToolUse | None]:
    """What an answer has to be, and which tools it may call; None: none. Raises: ApiError."""
    answer = read_form(body)
    if not body.tools or body.tool_choice == "none":
        return answer, None
    form, tokenizer = front.tool_format, front.prompts.need_tokenizer("messages")
    if form is None:
        message = (
            "tools need a model whose chat template tells it of them, in a form that is known here: leave them out."
        )
        raise ApiError(400, "unsupported_value", message, param="tools")
    tools = [_tool(place, each.function.name, each.function.parameters) for place, each in enumerate(body.tools)]
    descriptions = [each.model_dump(exclude_none=True) for each in body.tools]
    for each in descriptions:
        each["function"].setdefault("parameters", {"type": "object", "properties": {}})
    is_special = _special_id(tokenizer, form.begin) is not None
    use = ToolUse(form, tuple(tool.name for tool in tools), descriptions, is_special)
    return _form(body, form, tools, answer, tokenizer), use


def _tool(place: int, name: str, parameters: dict[str, Any] | None) -> Tool:
    param = f"tools[{place}].function.parameters"
    if parameters and parameters.get("type", "object") != "object":
        raise ApiError(400, "invalid_value", f"{param} must be a JSON schema of an object.", param=param)
    checked = structured(param, json_schema=closed_schema(parameters))
    assert isinstance(checked.json_schema, str), "it is kept as text"
    return Tool(name, checked.json_schema)


def _form(
    body: ChatBody, form: ToolCallFormat, tools: list[Tool], answer: OutputForm, tokenizer: Tokenizer
) -> OutputForm:
    choice = body.tool_choice or "auto"
    is_single = body.parallel_tool_calls is False or isinstance(choice, NamedTool)
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.name == choice.function.name]
    is_required = choice != "auto"
    if not is_required and answer.structured is None and (body.ignore_eos or body.min_tokens or body.allowed_token_ids):
        return answer  # which go with no grammar: calls are found in the text, whatever their arguments are
    grammar = calls_grammar(
        form,
        tools,
        "required" if is_required else "auto",
        is_single=is_single,
        answer=None if is_required else _json_answer(answer, form),
        special_id=lambda text: _special_id(tokenizer, text),
    )
    return OutputForm(structured("tools", grammar=grammar), "tools")


def _json_answer(answer: OutputForm, form: ToolCallFormat) -> StructuredOutput | None:
    is_json = answer.structured is not None and answer.structured.kind in ("json_schema", "json_object")
    if answer.structured is not None and not (is_json and form.begin):
        message = (
            f"{answer.param} can't go with tools that this model may call or not: set tool_choice to none or required."
        )
        raise ApiError(400, "unsupported_value", message, param=answer.param)
    return answer.structured


def _special_id(tokenizer: Tokenizer, text: str) -> int | None:
    return next((token_id for token_id, each in tokenizer.special_texts.items() if each == text), None)
