"""langchain-openai: invoke, stream, batch and a chain, for chats and for completions; answers in a schema, and tools that are called."""

import asyncio
import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


def main() -> None:
    chat = ChatOpenAI(model=MODEL, base_url=URL, api_key="unused", max_retries=0)
    check_chat(chat)
    check_schemas(chat)
    check_tools(chat)
    check_completions(OpenAI(model=MODEL, base_url=URL, api_key="unused", max_retries=0, temperature=0, max_tokens=4))
    print("chats and completions: invoke, stream, batch, a chain; with_structured_output three ways; tools")


def check_chat(chat: ChatOpenAI) -> None:
    answer = chat.invoke("What is 12+30?")
    assert answer.content == "42", answer
    assert answer.usage_metadata["total_tokens"] == sum(
        answer.usage_metadata[name] for name in ("input_tokens", "output_tokens")
    )
    assert answer.response_metadata["finish_reason"] == "stop", answer.response_metadata

    chunks = list(chat.stream("What is 12+30?", stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == "42", chunks
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"], whole

    assert asyncio.run(chat.ainvoke("What is 12+30?")).content == "42"
    answers = chat.batch(["What is 12+30?", "What is 20+7?"])
    assert [each.content for each in answers] == ["42", "27"], answers
    chain = ChatPromptTemplate.from_messages([("user", "What is {a}+{b}?")]) | chat | StrOutputParser()
    assert chain.invoke({"a": 20, "b": 7}) == "27"
    said = chat.bind(logprobs=True, top_logprobs=2).invoke("What is 12+30?").response_metadata["logprobs"]
    assert all(len(token["top_logprobs"]) == 2 for token in said["content"]), said


def check_schemas(chat: ChatOpenAI) -> None:
    for method in ("json_schema", "function_calling"):
        answer = chat.with_structured_output(Person, method=method).invoke("Ana is 31, lives in Oslo.")
        assert answer == Person(name="Ana", age=31), (method, answer)
        streamed = list(chat.with_structured_output(Person, method=method).stream("Ana is 31, lives in Oslo."))
        assert streamed[-1] == answer, (method, streamed)
    some = chat.with_structured_output(None, method="json_mode").invoke("json(name,age): Ana is 31, lives in Oslo.=")
    assert some == {"name": "Ana", "age": 31}, some


def check_tools(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([get_weather])
    asked = bound.invoke("What is the weather in Oslo?")
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"}), asked
    assert asked.response_metadata["finish_reason"] == "tool_calls", asked
    chunks = list(bound.stream("What is the weather in Oslo?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert [(each["name"], each["args"]) for each in whole.tool_calls] == [(call["name"], call["args"])], whole
    forced = chat.bind_tools([get_weather], tool_choice="get_weather").invoke("What is 12+30?")
    assert [each["name"] for each in forced.tool_calls] == ["get_weather"], forced
    assert isinstance(forced.tool_calls[0]["args"]["city"], str), forced


def check_completions(model: OpenAI) -> None:
    assert model.invoke("12+30=") == "42"
    assert "".join(model.stream("12+30=")) == "42"
    assert model.batch(["12+30=", "20+7="]) == ["42", "27"]


main()
