"""The parts of a request's body that say what its answer has to be: OpenAI's `response_format` and `tools`, vLLM's `structured_outputs`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sarathi_jax.serve.strict_body import Body, Items

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 8192
NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Description = Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)]


class JsonSchemaFormat(Body):
    name: Name
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    description: Description | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be there with type json_schema, and with no other")
        return self


class StructuredOutputs(Body):
    """Exactly one of these."""

    json_schema: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Items[str] | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def check_one(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("exactly one of json, json_object, regex, choice and grammar must be there")
        return self


class ToolFunction(Body):
    name: Name
    description: Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: ToolFunction


class ToolName(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: ToolName
