"""All that one HTTP request asked of the engine, as one answer: choices numbered over prompts and samples, one deadline, one end."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sarathi_jax.serve.admission import Admission, Ticket
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.generation import Generation, Piece, joined
from sarathi_jax.serve.live_request import Lost
from sarathi_jax.serve.schemas import SamplingBody


class Answer:
    """To be closed, whatever happens; what has not ended is aborted then."""

    def __init__(
        self, admission: Admission, ticket: Ticket, generations: Sequence[Generation], deadline_s: float
    ) -> None:
        self.generations = generations
        self.num_samples = generations[0].live.spec.params.n
        self._admission = admission
        self._ticket = ticket
        ticket.keep()
        self._has_begun = False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(deadline_s - time.perf_counter(), self._expire)

    @property
    def num_choices(self) -> int:
        return len(self.generations) * self.num_samples

    @property
    def num_prompt_tokens(self) -> int:
        return sum(generation.num_prompt_tokens for generation in self.generations)

    @property
    def num_cached_tokens(self) -> int:
        return sum(generation.num_cached_tokens for generation in self.generations)

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """What has come, each piece with the number of its choice in place of its sample's. Raises: ApiError."""
        if len(self.generations) == 1:
            async for pieces in self.generations[0].pieces():
                self._begin()
                yield pieces
            return
        queue: asyncio.Queue[list[Piece] | ApiError | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._feed(queue, place)) for place in range(len(self.generations))]
        num_left = len(tasks)
        try:
            while num_left:
                item = await queue.get()
                if item is None:
                    num_left -= 1
                elif isinstance(item, ApiError):
                    raise item
                else:
                    self._begin()
                    yield item
        finally:
            for task in tasks:
                task.cancel()

    async def whole(self) -> list[Piece]:
        """Every choice from its beginning to its end. Raises: ApiError."""
        choices: list[list[Piece]] = [[] for _ in range(self.num_choices)]
        async for pieces in self.batches():
            for piece in pieces:
                choices[piece.sample].append(piece)
        return [joined(pieces) for pieces in choices]

    async def extras(self, body: SamplingBody) -> dict[str, Any]:
        """What an answer has beside OpenAI's fields, where it was asked for."""
        if not body.timing:
            return {}
        timings = await asyncio.gather(*(generation.timing() for generation in self.generations))
        return {"timing": timings[0] if len(timings) == 1 else timings}

    def close(self) -> None:
        self._timer.cancel()
        for generation in self.generations:
            generation.close()
        self._ticket.close()

    async def _feed(self, queue: "asyncio.Queue[list[Piece] | ApiError | None]", place: int) -> None:
        first = place * self.num_samples
        try:
            async for pieces in self.generations[place].pieces():
                queue.put_nowait([piece._replace(sample=first + piece.sample) for piece in pieces])
            queue.put_nowait(None)
        except ApiError as error:
            queue.put_nowait(error)

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._admission.read(self._ticket)

    def _expire(self) -> None:
        for generation in self.generations:
            generation.live.lose(Lost("deadline_exceeded", "The request did not end before its deadline."))
