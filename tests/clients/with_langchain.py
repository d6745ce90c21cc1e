"""langchain-openai: invoke, stream, batch and a chain, for chats and for completions."""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]


def main() -> None:
    chat = ChatOpenAI(model=MODEL, base_url=URL, api_key="unused", max_retries=0)
    check_chat(chat)
    check_completions(OpenAI(model=MODEL, base_url=URL, api_key="unused", max_retries=0, temperature=0, max_tokens=4))
    print("chats and completions: invoke, stream, batch, a chain")


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

    answers = chat.batch(["What is 12+30?", "What is 20+7?"])
    assert [each.content for each in answers] == ["42", "27"], answers
    chain = ChatPromptTemplate.from_messages([("user", "What is {a}+{b}?")]) | chat | StrOutputParser()
    assert chain.invoke({"a": 20, "b": 7}) == "27"
    said = chat.bind(logprobs=True, top_logprobs=2).invoke("What is 12+30?").response_metadata["logprobs"]
    assert all(len(token["top_logprobs"]) == 2 for token in said["content"]), said


def check_completions(model: OpenAI) -> None:
    assert model.invoke("12+30=") == "42"
    assert "".join(model.stream("12+30=")) == "42"
    assert model.batch(["12+30=", "20+7="]) == ["42", "27"]


main()
