"""Examples as tokens, and whole documents packed into windows of a fixed shape.

Several documents share a window, and the questions on one context share that context: the arrays say which token may see
which (`document_ids`, `branches`) and what each position has to predict (`targets`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tokenizers
from demo_training.folder import END, EOS, chat_prefix
from demo_training.text import Example

ARRAY_NAMES = ("token_ids", "targets", "branches", "positions", "document_ids")


@dataclass(frozen=True, slots=True)
class Document:
    """One packed example. Parallel lists over its tokens.

    targets: the token to predict at each position, 0 (padding) where nothing counts.
    branches: 0 for the context that all questions see, else the question's number.
    positions: of a question start where the context ends."""

    task: str
    token_ids: list[int]
    targets: list[int]
    branches: list[int]
    positions: list[int]


def encode(tokenizer: tokenizers.Tokenizer, conversation: list[Example]) -> Document:
    """An example (or several chats in a row, as one conversation) as tokens."""
    first = conversation[0]
    document = Document(first.task, [], [], [], [])

    def put(text: str, *, stop: int | None = None, branch: int = 0, position: int) -> int:
        """Append text, an answer if it has a token to stop with; returns the position after it."""
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if stop is not None:
            ids.append(stop)
            document.targets[-1] = ids[0]
        document.token_ids.extend(ids)
        document.targets.extend([0] * len(ids) if stop is None else [*ids[1:], 0])
        document.branches.extend([branch] * len(ids))
        document.positions.extend(range(position, position + len(ids)))
        return position + len(ids)

    prefix, middle, stop = ("<s>", "", EOS)
    if first.is_chat:
        prefix, middle, stop = chat_prefix(first.tools, first.system), "<|end|><|assistant|>", END
    # With several questions on one context each is a branch; else the turns follow one another.
    end = put(prefix + first.context, position=0)
    if len(first.turns) > 1:
        for branch, turn in enumerate(first.turns, 1):
            start = put(turn.prompt + middle, branch=branch, position=end)
            put(turn.answer, stop=stop, branch=branch, position=start)
        return document
    for number, example in enumerate(conversation):
        question = "<|user|>" + example.prompt if number else example.turns[0].prompt
        end = put(question + middle, position=end)
        end = put(example.turns[0].answer, stop=stop, position=end)
    return document


@dataclass(frozen=True, slots=True)
class Batch:
    """i32[N, W] each; `document_ids` count from 1 within a window, 0 is padding. `tasks[n][id - 1]` names a document's."""

    arrays: dict[str, np.ndarray]
    tasks: list[list[str]]


def pack(documents: Iterator[Document], shape: tuple[int, int]) -> Batch:
    """Fill windows with whole documents, each into the fullest window that still has room; stop when several have not."""
    num_windows, width = shape
    arrays = {name: np.zeros(shape, np.int32) for name in ARRAY_NAMES}
    tasks: list[list[str]] = [[] for _ in range(num_windows)]
    used, num_misses = [0] * num_windows, 0
    while num_misses < 6:
        document = next(documents)
        length = len(document.token_ids)
        if length > width:
            continue
        fitting = [n for n in range(num_windows) if used[n] + length <= width]
        if not fitting:
            num_misses += 1
            continue
        n = max(fitting, key=lambda each: used[each])
        tasks[n].append(document.task)
        put_document(arrays, n, used[n], len(tasks[n]), document)
        used[n] += length
    return Batch(arrays, tasks)


def put_document(arrays: dict[str, np.ndarray], window: int, start: int, number: int, document: Document) -> None:
    here = slice(start, start + len(document.token_ids))
    for name in ARRAY_NAMES[:-1]:
        arrays[name][window, here] = getattr(document, name)
    arrays["document_ids"][window, here] = number
