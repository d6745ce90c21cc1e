"""LiteLLM: its three names for a server like ours; whole and streamed answers, usage, schemas, tools, errors."""

import json
import sys

import litellm
from pydantic import BaseModel

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
MESSAGES = [{"role": "user", "content": "What is 12+30?"}]
CHATS = ("openai", "hosted_vllm")
COMPLETIONS = ("text-completion-openai",)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": CITY}}


class Person(BaseModel):
    name: str
    age: int


def main() -> None:
    for prefix in CHATS:
        check_chat({"model": f"{prefix}/{MODEL}", "api_base": URL, "api_key": "unused", "num_retries": 0})
    for prefix in COMPLETIONS:
        check_completion({"model": f"{prefix}/{MODEL}", "api_base": URL, "api_key": "unused", "num_retries": 0})
    print(f"{', '.join((*CHATS, *COMPLETIONS))}: whole, streamed, usage, schemas, tools, errors")


def check_chat(options: dict) -> None:
    whole = litellm.completion(messages=MESSAGES, max_tokens=16, **options)
    assert whole.choices[0].message.content == "42", whole
    assert whole.choices[0].finish_reason == "stop", whole
    assert whole.usage.prompt_tokens > 0 and whole.usage.completion_tokens > 0, whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage

    chunks = list(litellm.completion(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "42", chunks
    used = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert used[-1].completion_tokens == whole.usage.completion_tokens, used
    rebuilt = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert rebuilt.choices[0].message.content == "42", rebuilt
    assert rebuilt.usage.prompt_tokens == whole.usage.prompt_tokens, rebuilt

    with_logprobs = litellm.completion(messages=MESSAGES, logprobs=True, top_logprobs=2, seed=1, **options)
    said = with_logprobs.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in said), said
    check_structure(options)
    check_errors(MESSAGES, options)


def check_structure(options: dict) -> None:
    asks = [{"role": "user", "content": "Ana is 31, lives in Oslo."}]
    answer = litellm.completion(messages=asks, response_format=Person, **options).choices[0].message.content
    assert Person.model_validate_json(answer) == Person(name="Ana", age=31), answer

    asks = [{"role": "user", "content": "What is the weather in Oslo?"}]
    for more in ({}, {"stream": True}):
        answer = litellm.completion(messages=asks, tools=[WEATHER], tool_choice="auto", **more, **options)
        whole = litellm.stream_chunk_builder(list(answer)) if more else answer
        (call,) = whole.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"}), whole
        assert whole.choices[0].finish_reason == "tool_calls", whole


def check_completion(options: dict) -> None:
    whole = litellm.text_completion(prompt="12+30=", max_tokens=4, stop=["\n"], **options)
    assert whole.choices[0].text == "42", whole
    assert whole.usage.completion_tokens > 0, whole.usage
    several = litellm.text_completion(prompt=["12+30=", "20+7="], max_tokens=4, **options)
    assert [choice.text for choice in several.choices] == ["42", "27"], several
    streamed = litellm.text_completion(prompt="12+30=", max_tokens=4, stream=True, **options)
    assert "".join(chunk.choices[0].text or "" for chunk in streamed if chunk.choices) == "42"


def check_errors(messages: list, options: dict) -> None:
    for wrong, kind in (
        ({"model": options["model"].replace(MODEL, "another")}, litellm.NotFoundError),
        ({"temperature": 3.0}, litellm.BadRequestError),
    ):
        try:
            litellm.completion(messages=messages, **{**options, **wrong})
        except kind:
            continue
        raise AssertionError(f"{wrong} did not raise {kind.__name__}")


main()
