"""The port between the scheduler and whatever says which tokens may come next in an output. Knows nothing of text or grammars."""

from typing import Protocol

import numpy as np


class Constraint(Protocol):
    """Where one output stands."""

    @property
    def is_ended(self) -> bool:
        """Whether nothing but an end-of-sequence token may follow."""
        ...

    def mask(self) -> np.ndarray:
        """u32[ceil(V / 32)]: token i may come next if bit i % 32 of word i // 32 is set. Never written to later."""
        ...

    def accept(self, token_id: int) -> bool:
        """Go on by a token. Returns: False if the output can't go on: its request has to end with an error."""
        ...

    def copy(self) -> "Constraint":
        """The same state, to go on from by itself."""
        ...
