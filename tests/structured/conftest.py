"""A small byte tokenizer, what makes constraints for it, and walks through a grammar by tokens drawn at random."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.token_constraint import ConstraintFactory, TokenConstraint
from sarathi_jax.text.tokenizer import Tokenizer

DEMO = Path(__file__).parent.parent.parent / "sarathi_jax" / "assets" / "demo"
VOCAB, EOS = 512, (2, 5)


def allowed_ids(mask: np.ndarray) -> list[int]:
    """Ids whose bits are set."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO)


@pytest.fixture(scope="session")
def factory() -> ConstraintFactory:
    made = ConstraintFactory.from_folder(DEMO, VOCAB, EOS)
    assert made is not None
    return made


@pytest.fixture(scope="session")
def ids_of() -> Callable[[np.ndarray], list[int]]:
    return allowed_ids


@pytest.fixture(scope="session")
def walk(factory: ConstraintFactory, tokenizer: Tokenizer) -> Callable[..., tuple[str, bool]]:
    """`walk(structured, seed, max_tokens)` draws tokens at random among those allowed. Returns: the text, and whether it has ended."""

    def run(structured: StructuredOutput, seed: int, max_tokens: int = 60) -> tuple[str, bool]:
        rng, drawn = random.Random(seed), list[int]()
        constraint: TokenConstraint = factory.make(structured)
        while len(drawn) < max_tokens and not constraint.is_ended:
            token_id = rng.choice(allowed_ids(constraint.mask()))
            if token_id in EOS:
                return text_of(drawn), True
            assert constraint.accept(token_id)
            drawn.append(token_id)
        return text_of(drawn), constraint.is_ended

    def text_of(token_ids: Sequence[int]) -> str:
        return b"".join(tokenizer.token_bytes(each) for each in token_ids).decode("utf-8", "replace")

    return run
