"""`chat --url`: the conversation of `chat`, with a server on the other side."""

from typing import Any

import pytest

from sarathi_jax.cli.main import main


class Lines(list[str]):
    """Piped lines."""

    def isatty(self) -> bool:
        return False


@pytest.fixture
def chat(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command over piped lines. Returns its exit code."""

    def run(*lines: str, words: str = "") -> int:
        monkeypatch.setattr("sys.stdin", Lines(lines))
        return main(["chat", "--url", server.url, *words.split()])

    return run


def test_answers_stream_and_the_conversation_is_the_context(
    server: Any, chat: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat("hi\n", "you\n", "/reset\n", "again\n", "/exit\n", "more\n") == 0
    assert capsys.readouterr().out == "t0 t1 t2 \n" * 3
    assert [[each["role"] for each in body["messages"]] for body in server.bodies] == [
        ["user"],
        ["user", "assistant", "user"],
        ["user"],
    ]
    assert server.bodies[1]["messages"][1]["content"] == "t0 t1 t2 "
    assert server.bodies[0]["model"] == "fake-model"


def test_options_of_sampling_go_to_the_server_and_nothing_that_was_not_asked_for(server: Any, chat: Any) -> None:
    assert chat("hi", words="named --system short --max-tokens 2 --top-p 0.5 --stop a --seed 7") == 0
    body = server.bodies[0]
    assert body == {
        "model": "named",
        "messages": [{"role": "system", "content": "short"}, {"role": "user", "content": "hi"}],
        "temperature": 0.0,
        "max_tokens": 2,
        "top_p": 0.5,
        "stop": ["a"],
        "seed": 7,
        "stream": True,
    }


def test_a_refusal_is_told_plainly_and_the_conversation_goes_on(
    server: Any, chat: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses = [429]
    assert chat("hi", "you") == 2
    printed = capsys.readouterr()
    assert printed.err == "error: HTTP 429: status 429. /reset forgets the conversation.\n"
    assert printed.out.endswith("t0 t1 t2 \n")
    assert [each["content"] for each in server.bodies[1]["messages"]] == ["you"]


def test_an_answer_that_breaks_off_is_told(server: Any, chat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.fault = "error_event"
    assert chat("hi") == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("t0 \n", "error: it broke. /reset forgets the conversation.\n")


def test_the_key_is_sent(server: Any, chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "secret"
    assert chat("hi") == 2
    assert chat("hi", words="--api-key secret") == 0
    monkeypatch.setenv("SARATHI_JAX_API_KEY", "secret")
    assert chat("hi") == 0


def test_options_of_the_engine_are_refused(chat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("hi", words="--token-budget 512") == 2
    assert "with --url the engine is the server's, got --token-budget: leave it out." in capsys.readouterr().err
