"""What clients may send: OpenAI's request bodies and vLLM's additions, field by field. What is not here is refused, and so is what is here and not supported.

Ranges that depend on the model are checked where all requests are (`scheduling.admission`); those that depend on other fields in `SamplingParams`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from sarathi_jax.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS
from sarathi_jax.serve.output_schemas import MAX_TOOLS, NamedTool, ResponseFormat, StructuredOutputs, Tool
from sarathi_jax.serve.strict_body import Body, Items

MAX_INT = 2**63 - 1
MAX_STOPS = 4
MAX_STOP_CHARS = 1024
MAX_PROMPTS = 256
MAX_MESSAGES = 10_000
MAX_COMPLETION_LOGPROBS = 5
# A token of most vocabularies is a few characters; the tokenizer counts exactly, when this much has been let in.
SALT_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class SamplingBody(Body):
    """What both ways of asking for text share."""

    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIAS)] | None
    ) = None
    allowed_token_ids: Annotated[Items[TokenId], Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=MAX_INT)] | None = None
    stop: Stop | Annotated[Items[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[Items[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    cache_salt: Annotated[str, Field(pattern=SALT_PATTERN)] | None = None
    slo_class: Literal["interactive", "batch"] | None = None
    priority: Annotated[int, Field(ge=-(2**63), le=MAX_INT)] | None = None
    request_id: Annotated[str, Field(pattern=SALT_PATTERN)] | None = None
    deadline_ms: Annotated[float, Field(gt=0)] | None = None
    timing: bool | None = None

    # Nothing that the text depends on: taken, and not used.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None

    # Known, and not supported: refused unless they ask for nothing.
    use_beam_search: Literal[False] | None = None
    length_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    spaces_between_special_tokens: Literal[True] | None = None

    @model_validator(mode="after")
    def check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams: leave it out, or set stream to true")
        return self

    @model_validator(mode="after")
    def check_structured(self) -> Self:
        has_format = self.response_format is not None and self.response_format.type != "text"
        if has_format and self.structured_outputs is not None:
            raise ValueError("one of response_format and structured_outputs may be there: leave out the other")
        return self


class CompletionBody(SamplingBody):
    """POST /v1/completions"""

    prompt: (
        str
        | Annotated[Items[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[Items[int], Field(min_length=1)]
        | Annotated[Items[Annotated[Items[int], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None
    best_of: int | None = None
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def check_best_of(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of must be n={self.n or 1}: choosing among more samples is not supported")
        return self


def check_part_type(value: object) -> object:
    if isinstance(value, str) and value != "text":
        raise PydanticCustomError("unsupported_value", "Input should be 'text': this model reads nothing else")
    return value


class TextPart(Body):
    type: Annotated[Literal["text"], BeforeValidator(check_part_type)]
    text: str


class ToolCallFunction(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: ToolCallFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[Items[TextPart], Field(min_length=1)] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: Items[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def check_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content must be there, but for an assistant's message with tool_calls")
        return self


class ChatBody(SamplingBody):
    """POST /v1/chat/completions"""

    messages: Annotated[Items[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    tools: Annotated[Items[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    # Known, and not supported: refused unless they ask for nothing.
    modalities: Items[Literal["text"]] | None = None
    audio: None = None
    prediction: None = None
    functions: None = None
    function_call: None = None
    web_search_options: None = None
    reasoning_effort: Literal["none"] | None = None

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        if None not in (both := (self.max_tokens, self.max_completion_tokens)) and both[0] != both[1]:
            raise ValueError(f"max_tokens and max_completion_tokens must be equal, got {both[0]} and {both[1]}")
        return self

    @model_validator(mode="after")
    def check_tools(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools must have names that differ")
        if isinstance(self.tool_choice, NamedTool):
            if self.tool_choice.function.name not in names:
                raise ValueError(f"tool_choice must name one of tools, got {self.tool_choice.function.name}")
        elif self.tool_choice not in (None, "none") and not names:
            raise ValueError(f"tool_choice {self.tool_choice} needs tools")
        return self

    @model_validator(mode="after")
    def check_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


class TokenizeBody(Body):
    """POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Items[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def check_source(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("one of prompt and messages must be there, and not both")
        return self


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: str | None = None
    tokens: Items[TokenId]
