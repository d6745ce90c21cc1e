"""OpenAI's Python client against a server of ours: whole, streamed, and several at a time.

sarathi-jax serve demo &
pip install openai
python examples/openai_client.py
"""

import asyncio
import os

from openai import AsyncOpenAI, OpenAI

URL = os.environ.get("SARATHI_JAX_URL", "http://127.0.0.1:8000")
QUESTIONS = ["What is 12+30?", "What is 7*8?", "Why are prompts split into chunks?"]


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("SARATHI_JAX_API_KEY", "unused"))
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTIONS[0]}])
    print("whole:   ", answer.choices[0].message.content)

    print("streamed: ", end="")
    for chunk in client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTIONS[2]}], stream=True
    ):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    asyncio.run(ask_all(model))


async def ask_all(model: str) -> None:
    """The engine runs them together."""
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("SARATHI_JAX_API_KEY", "unused")) as client:

        async def ask(question: str) -> str | None:
            answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}])
            return answer.choices[0].message.content

        for question, said in zip(QUESTIONS, await asyncio.gather(*map(ask, QUESTIONS)), strict=True):
            print("together:", question, "->", said)


if __name__ == "__main__":
    main()
