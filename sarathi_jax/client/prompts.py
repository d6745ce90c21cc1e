"""Prompts of given lengths for a server whose tokenizer is not here: as token ids, or as text whose tokens the server itself has counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from sarathi_jax.simulation.token_ids import TokenIds
from sarathi_jax.simulation.workloads import RequestShape

# Low ids are everywhere special tokens; every tokenizer has these, as single bytes or more.
FIRST_ID, DEFAULT_VOCAB_SIZE = 16, 256
NUM_LETTERS = 26


@dataclass(frozen=True, slots=True)
class TextLength:
    """How many tokens a text of letters with spaces between them takes: `tokens_per_letter` each, and `overhead` around them."""

    tokens_per_letter: float = 1.0
    overhead: float = 0.0

    def num_letters(self, num_tokens: int, *, has_overhead: bool = True) -> int:
        """At least 1."""
        rest = num_tokens - (self.overhead if has_overhead else 0.0)
        return max(1, round(rest / self.tokens_per_letter))


def fit_length(few: tuple[int, int], many: tuple[int, int]) -> TextLength:
    """From two measurements, each (letters, tokens)."""
    slope = (many[1] - few[1]) / (many[0] - few[0])
    return TextLength(slope, few[1] - slope * few[0]) if slope > 0 else TextLength()


def probe_text(num_letters: int) -> str:
    return letters(list(range(num_letters)))


def letters(ids: Sequence[int]) -> str:
    """A letter an id: in nearly every tokenizer a letter with a space before it is one token."""
    return " ".join(chr(ord("a") + each % NUM_LETTERS) for each in ids)


def id_prompts(shapes: Sequence[RequestShape], vocab_size: int, seed: int) -> list[list[int]]:
    """The new tokens of each. vocab_size: ids are below it, and not the lowest."""
    ids = TokenIds(shapes, vocab_size - FIRST_ID, seed)
    return [[FIRST_ID + each for each in prompt] for prompt in ids.all_new_tokens()]


def text_prompts(shapes: Sequence[RequestShape], length: TextLength, seed: int) -> list[str]:
    """What each adds to the rounds before it, as text."""
    in_letters = [_in_letters(shape, shapes, length) for shape in shapes]
    ids = TokenIds(in_letters, NUM_LETTERS, seed)
    return [letters(prompt) for prompt in ids.all_new_tokens()]


def _in_letters(shape: RequestShape, shapes: Sequence[RequestShape], length: TextLength) -> RequestShape:
    """The same with letters in place of tokens, and nothing but what is new."""
    num_new_tokens = shape.num_prompt_tokens - (0 if shape.after is None else shapes[shape.after].num_tokens)
    num_letters = length.num_letters(num_new_tokens, has_overhead=shape.after is None)
    num_shared = min(round(shape.num_shared_tokens / length.tokens_per_letter), num_letters)
    return RequestShape(0.0, num_letters, 1, num_shared_tokens=num_shared)
