"""Requests with a structure on their way to the engine: what they may sample is compiled in a thread of its own, while steps go on."""

import queue
import threading
from collections.abc import Iterator

from sarathi_jax.errors import RequestError, SarathiError
from sarathi_jax.scheduling.constraint import Constraint
from sarathi_jax.serve.messages import Add
from sarathi_jax.text.token_constraint import ConstraintFactory

type Made = tuple[Add, Constraint | SarathiError]


class ConstraintQueue:
    """In the order they came. All calls from one thread. factory: None: the model has no tokenizer to make constraints of."""

    def __init__(self, factory: ConstraintFactory | None) -> None:
        self._factory = factory
        self._asked: queue.SimpleQueue[Add] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[Made] = queue.SimpleQueue()
        self._waiting: list[Add] = []
        self._thread: threading.Thread | None = None

    @property
    def has_work(self) -> bool:
        """Whether `take` will have more to give."""
        return bool(self._waiting)

    def add(self, message: Add) -> None:
        if self._thread is None:
            # Nothing is lost with it when the process ends.
            self._thread = threading.Thread(target=self._run, name="constraints", daemon=True)
            self._thread.start()
        self._waiting.append(message)
        self._asked.put(message)

    def drop(self, number: int) -> None:
        """Nobody waits for a request any more."""
        self._waiting = [message for message in self._waiting if message.number != number]

    def take(self) -> Iterator[Made]:
        """Requests whose constraint is made, or why it can't be. A constraint is its taker's alone."""
        while self._waiting and not self._made.empty():
            message, made = self._made.get()
            if any(message is each for each in self._waiting):
                self._waiting = [each for each in self._waiting if each is not message]
                yield message, made

    def _run(self) -> None:
        while True:
            message = self._asked.get()
            self._made.put((message, self._make(message)))

    def _make(self, message: Add) -> Constraint | SarathiError:
        structured = message.params.structured
        assert structured is not None, "only requests with a structure come here"
        if self._factory is None:
            return RequestError("structured needs a model with a tokenizer.json: leave it out.", param="structured")
        try:
            return self._factory.make(structured, message.output_token_ids)
        except SarathiError as error:
            return error
