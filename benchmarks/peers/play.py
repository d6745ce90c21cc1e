"""A peer's side of `vs_peers.py`: a child that is told once how to start, then answers each load, one line of JSON, with one, and is idle in between.

Runs in the peer's own environment, which has not this package: Python 3.11 and its standard library are enough.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from benchmarks.peers.load import Answer, Order, Request

Play = Callable[[list[Request]], list[Answer]]


class StepEngine(Protocol):
    """An engine that works while it is stepped."""

    def add(self, place: int, prompt: list[int], max_tokens: int) -> None:
        """Queue a request: greedy, without an end of sequence."""
        ...

    def step(self) -> Iterable[tuple[int, Sequence[int]]]:
        """One step. Returns: the new tokens of each request that got any."""
        ...


def play_in_steps(engine: StepEngine, requests: list[Request]) -> list[Answer]:
    """Send a load through an engine in this process. Requests are in the order in which they arrive."""
    begin_s = time.perf_counter()
    answers: list[Answer] = []
    num_missing = sum(each.max_tokens for each in requests)
    while num_missing:
        while len(answers) < len(requests):
            request = requests[len(answers)]
            if request.after_tokens and len(answers[0].token_ids) < request.after_tokens:
                break
            answers.append(Answer(time.perf_counter() - begin_s, [], []))
            engine.add(len(answers) - 1, request.prompt, request.max_tokens)
        for place, token_ids in engine.step():
            now_s = time.perf_counter() - begin_s
            answers[place].token_ids += token_ids
            answers[place].token_times_s += [now_s] * len(token_ids)
            num_missing -= len(token_ids)
    return answers


def serve_loads(start: Callable[[Order], Play], packages: Sequence[str]) -> None:
    """Be the child. start: makes the peer ready. packages: whose versions are told.

    Answers go where standard output was, and all that libraries print goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    play = start(Order(**json.loads(sys.argv[1])))
    say(answers, {name: importlib.metadata.version(name) for name in packages} | {"python": sys.version.split()[0]})
    for line in sys.stdin:
        say(answers, [asdict(each) for each in play([Request(**each) for each in json.loads(line)])])


def say(stream: Any, message: Any) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()
