"""OpenAI's own Python client, unmodified: what it sends is understood, and what it gets it can read."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

QUESTION: list[Any] = [{"role": "user", "content": "What is 12+30?"}]


@pytest.fixture
def client(real_server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real_server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "sarathi-jax"


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, max_completion_tokens=16)
    assert "42" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_a_streamed_chat_is_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=QUESTION)
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(len(token.top_logprobs) == 3 for token in logprobs.content)
    said = b"".join(bytes(token.bytes or []) for token in logprobs.content).decode()
    assert said.startswith(answer.choices[0].message.content or "")


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_a_call_of_a_tool_whole_and_streamed(client: openai.OpenAI) -> None:
    """The client puts a stream's deltas together itself."""
    fields: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
        "tools": [WEATHER],
        "temperature": 0,
    }
    (whole,) = client.chat.completions.create(**fields).choices
    assert whole.finish_reason == "tool_calls"
    with client.chat.completions.stream(**fields) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    for choice in (whole, streamed):
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Oslo"}')


def test_an_answer_as_a_type_of_ones_own(client: openai.OpenAI) -> None:
    class Person(BaseModel):
        name: str
        age: int

    content = "Write JSON with name,age: Ana is 31, lives in Oslo, likes red and has 5 pears."
    answer = client.chat.completions.parse(
        model="demo", messages=[{"role": "user", "content": content}], response_format=Person, temperature=0
    )
    assert answer.choices[0].message.parsed == Person(name="Ana", age=31)


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=["12+30=", "20+7="], max_tokens=4, stop=["\n"], seed=1)
    assert [choice.text for choice in answer.choices] == ["42", "27"]


def test_fields_of_ours_in_extra_body(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="12+30=", max_tokens=8, extra_body={"ignore_eos": True, "top_k": 1, "timing": True}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.model_extra is not None
    assert answer.model_extra["timing"]["e2e_s"] > 0


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "another"}, openai.NotFoundError, "model"),
        ({"temperature": 3.0}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour"),
    ],
)
def test_errors(client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], param: str) -> None:
    with pytest.raises(kind) as error:
        client.chat.completions.create(**{"model": "demo", "messages": QUESTION, **fields})
    assert error.value.param == param  # pyright: ignore[reportAttributeAccessIssue]


async def read_some(url: str) -> int:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        stream = await client.chat.completions.create(model="demo", messages=QUESTION, stream=True)
        num_read = 0
        async for _ in stream:
            num_read += 1
            if num_read == 2:
                await stream.close()
                break
    return num_read


def test_an_async_client_may_leave(real_server: Any) -> None:
    assert asyncio.run(read_some(real_server.url)) == 2
    assert "42" in real_server.chat()["choices"][0]["message"]["content"]
