"""The conversation of `chat`, with a model that answers with what it was told."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from sarathi_jax.cli.chat import converse, stream_answer, user_lines
from sarathi_jax.errors import RequestError
from sarathi_jax.outputs import StreamEvent
from sarathi_jax.sampling_params import SamplingParams


class Parrot:
    """Says how long the conversation is and what came last, in two pieces; refuses a last message of over 10 characters."""

    def __init__(self) -> None:
        self.seen: list[list[Mapping[str, Any]]] = []

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams) -> Iterator[StreamEvent]:
        if len(messages[-1]["content"]) > 10:
            raise RequestError("the prompt is too long: shorten it.")
        self.seen.append(list(messages))
        for delta in (f"{len(messages)}:", messages[-1]["content"]):
            yield StreamEvent("request-0", 0, delta, [1])


def say(*lines: str, system: str | None = None) -> tuple[Parrot, int]:
    parrot: Any = Parrot()
    return parrot, converse(partial(stream_answer, parrot, SamplingParams()), system, iter(lines))


def test_each_turn_is_answered_with_all_before_as_context(capsys: pytest.CaptureFixture[str]) -> None:
    parrot, code = say("hi", "", "you")
    assert code == 0
    assert capsys.readouterr().out == "1:hi\n3:you\n"
    assert [message["role"] for message in parrot.seen[1]] == ["user", "assistant", "user"]
    assert parrot.seen[1][1]["content"] == "1:hi"


def test_reset_forgets_all_but_the_system_message(capsys: pytest.CaptureFixture[str]) -> None:
    parrot, _ = say("hi", "/reset", "you", system="be brief")
    assert capsys.readouterr().out == "2:hi\n2:you\n"
    assert parrot.seen[1] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "you"}]


def test_exit_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    say("hi", " /exit ", "more")
    assert capsys.readouterr().out == "1:hi\n"


def test_a_turn_that_is_refused_is_told_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    _, code = say("hi", "far too long a line", "you")
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == "1:hi\n3:you\n"
    assert printed.err == "error: the prompt is too long: shorten it. /reset forgets the conversation.\n"


def test_piped_lines_come_without_their_newlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", iter(["hi \n", "you"]))
    assert list(user_lines(is_terminal=False)) == ["hi ", "you"]
