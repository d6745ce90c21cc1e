"""Token ids of a workload: what they say doesn't matter, only that no two prompts share a prefix unless their requests do."""

from collections.abc import Sequence

import numpy as np

from sarathi_jax.simulation.workloads import RequestShape

_GOLDEN_RATIO = 0.6180339887498949


class TokenIds:
    """Prompts and outputs of every request, whatever ran before: the next round's prompt holds the output that this one will have.

    All are slices of one list of random ids, each from a start of its own, so that they cost little to make and the ids' objects are there once.

    Args:
      shapes: the workload; requests are named by their places in it.
      vocab_size: ids are below it.
    """

    def __init__(self, shapes: Sequence[RequestShape], vocab_size: int = 32_000, seed: int = 0) -> None:
        self._shapes = shapes
        # Twice a request (what is new in its prompt, and its output) and once for what all share; a power of two, so that an odd stride meets every start.
        self._num_starts = max(2**16, 1 << (2 * len(shapes)).bit_length())
        self._stride = int(self._num_starts * _GOLDEN_RATIO) | 1
        longest = max((shape.num_tokens for shape in shapes), default=0)
        ids = np.random.default_rng([seed, 5]).integers(0, vocab_size, self._num_starts)
        self._ids: list[int] = np.resize(ids, self._num_starts + longest).tolist()

    def prompt(self, place: int) -> list[int]:
        """The whole prompt: all rounds before, and what is new."""
        rounds, before = [place], self._shapes[place].after
        while before is not None:
            rounds.append(before)
            before = self._shapes[before].after
        token_ids: list[int] = []
        for each in reversed(rounds[1:]):
            token_ids += self.new_tokens(each)
            token_ids += self.output(each)
        return token_ids + self.new_tokens(place)

    def new_tokens(self, place: int) -> list[int]:
        """What the prompt adds to the rounds before; without one, all of it."""
        shape = self._shapes[place]
        num_old_tokens = 0 if shape.after is None else self._shapes[shape.after].num_tokens
        num_new_tokens = shape.num_prompt_tokens - num_old_tokens
        assert num_new_tokens > 0, "a round's prompt is longer than the round before"
        num_shared_tokens = min(shape.num_shared_tokens, num_new_tokens)
        return self._slice(0, num_shared_tokens) + self._slice(2 * place + 1, num_new_tokens - num_shared_tokens)

    def all_new_tokens(self) -> list[list[int]]:
        """Of every request: whoever sends them puts what was really said in front."""
        return [self.new_tokens(place) for place in range(len(self._shapes))]

    def output(self, place: int) -> list[int]:
        """All tokens that the request generates."""
        return self._slice(2 * place + 2, self._shapes[place].num_output_tokens)

    def output_at(self, place: int, position: int) -> int:
        """The token that the request generates after `position` others."""
        return self._ids[self._start(2 * place + 2) + position]

    def _start(self, number: int) -> int:
        return number * self._stride & (self._num_starts - 1)

    def _slice(self, number: int, length: int) -> list[int]:
        start = self._start(number)
        return self._ids[start : start + length]
