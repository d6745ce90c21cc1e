"""What a workload is made of: requests by their lengths, their arrivals, and who sends them. Knows no text and no engine; what draws or reads them is in the
files beside it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sarathi_jax.errors import ConfigError


class RequestShape(NamedTuple):
    """One request of a workload, which is a sequence of them; a request of no conversation is like one of a single round.

    arrival_s: seconds after the start at which it arrives; of a later round, the earliest.
    num_prompt_tokens: with all that the prompt repeats of earlier rounds.
    num_output_tokens: to generate.
    after: the round before it in its conversation, by its place in the workload, where it stands further up. The prompt begins with that round's prompt
      and output, and it arrives only when that output has ended and `think_s` seconds have passed.
    num_shared_tokens: how many tokens the prompt of a first round begins with that are the same in all of the workload: a system prompt.
    slo_class, client_id: whose deadlines hold for it, and who sends it; "" where that makes no difference.
    """

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    after: int | None = None
    think_s: float = 0.0
    num_shared_tokens: int = 0
    slo_class: str = ""
    client_id: str = ""

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return self.num_prompt_tokens + self.num_output_tokens


def check_count(num_requests: int) -> None:
    """Raises: ConfigError if a workload of so many requests is none."""
    if num_requests < 1:
        raise ConfigError(f"num_requests must be at least 1, got {num_requests}: pass a positive number.")


def fit_within(shapes: Sequence[RequestShape], max_total_tokens: int) -> list[RequestShape]:
    """A workload for a model that takes at most so many tokens: a longer request is shrunk, prompt and output alike, as Sarathi-Serve's harness does;
    a conversation ends before the round that would be too long.

    Raises: ConfigError."""
    if max_total_tokens < 2:
        raise ConfigError(
            f"max_total_tokens must be at least 2, got {max_total_tokens}: a prompt and an output have one."
        )
    fitting: list[RequestShape] = []
    new_places: dict[int | None, int | None] = {None: None}
    for place, shape in enumerate(shapes):
        is_too_long = shape.num_tokens > max_total_tokens
        if shape.after in new_places and not (is_too_long and shape.after is not None):
            new_places[place] = len(fitting)
            fitted = _shrunk(shape, max_total_tokens) if is_too_long else shape
            fitting.append(fitted._replace(after=new_places[shape.after]))
    return fitting


def _shrunk(shape: RequestShape, max_total_tokens: int) -> RequestShape:
    num_output_tokens = max(1, shape.num_output_tokens * max_total_tokens // shape.num_tokens)
    num_prompt_tokens = max(1, shape.num_prompt_tokens * max_total_tokens // shape.num_tokens)
    return shape._replace(
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=num_output_tokens,
        num_shared_tokens=min(shape.num_shared_tokens, num_prompt_tokens),
    )


def with_classes(shapes: Sequence[RequestShape], shares: Mapping[str, float], seed: int) -> list[RequestShape]:
    """The same requests with `slo_class` set, each class on its share of the conversations. Raises: ConfigError."""
    names = _spread(shapes, "classes", shares, [seed, 3])
    return [shape._replace(slo_class=name) for shape, name in zip(shapes, names, strict=True)]


def with_clients(shapes: Sequence[RequestShape], shares: Mapping[str, float], seed: int) -> list[RequestShape]:
    """The same requests with `client_id` set, each client sending its share of the conversations. Raises: ConfigError."""
    names = _spread(shapes, "clients", shares, [seed, 4])
    return [shape._replace(client_id=name) for shape, name in zip(shapes, names, strict=True)]


def _spread(shapes: Sequence[RequestShape], what: str, shares: Mapping[str, float], seed: Sequence[int]) -> list[str]:
    """A name for each request, later rounds having their first one's: as many of each as its share says, to the nearest whole one, in random order."""
    if not shares or not all(0 < share < float("inf") for share in shares.values()):
        raise ConfigError(f"{what} must each have a share above 0, got {dict(shares)}: give them, or leave them out.")
    names = list(shares)
    num_conversations = sum(shape.after is None for shape in shapes)
    places = (np.random.default_rng(seed).permutation(num_conversations) + 0.5) / num_conversations
    ends = np.cumsum(list(shares.values())) / sum(shares.values())
    drawn = iter(np.searchsorted(ends[:-1], places, side="right").tolist())
    spread: list[str] = []
    for shape in shapes:
        spread.append(names[next(drawn)] if shape.after is None else spread[shape.after])
    return spread
