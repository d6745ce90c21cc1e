"""Conversations of several rounds: each prompt repeats all that was said before, so that a prefix cache can find it."""

from dataclasses import dataclass

import numpy as np

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.lengths import SHAREGPT, LogNormal, Quantiles, whole_tokens
from sarathi_jax.simulation.workloads import RequestShape, check_count, fit_within

# With 4.9 rounds on average, this makes the prompts of all rounds together as long as those of openchat_sharegpt4 (`SHAREGPT`), whose requests are rounds
# with their history: fitted to that trace's quantiles and mean.
USER_TOKENS = LogNormal(median=108, sigma=1.75, longest=8000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chats:
    """Conversations that start independently of each other; in each, the next round comes a while after the last answer.

    mean_rounds: of a geometric distribution; a conversation also ends before the round that would pass `max_total_tokens`.
    mean_think_s: from an answer's end to the next message; exponential.
    num_system_tokens: what every conversation's first prompt begins with, the same in all.
    user_tokens, output_tokens: of one message and of one answer.

    Raises: ConfigError, from the constructor."""

    mean_rounds: float = 4.9
    mean_think_s: float = 10.0
    num_system_tokens: int = 0
    max_total_tokens: int = SHAREGPT.max_total_tokens
    user_tokens: Quantiles = USER_TOKENS
    output_tokens: Quantiles = SHAREGPT.outputs

    def __post_init__(self) -> None:
        if not 1 <= self.mean_rounds < float("inf"):
            raise ConfigError(
                f"mean_rounds must be at least 1, got {self.mean_rounds}: 1 is a conversation of one round."
            )
        if not 0 <= self.mean_think_s < float("inf"):
            raise ConfigError(f"mean_think_s must be 0 or more, got {self.mean_think_s}: 0 is an answer at once.")
        if not 0 <= self.num_system_tokens <= self.max_total_tokens // 2:
            raise ConfigError(
                f"num_system_tokens must be at least 0 and at most half of max_total_tokens={self.max_total_tokens}, got {self.num_system_tokens}: "
                "change one of them."
            )

    def draw(self, num_requests: int, seed: int) -> list[RequestShape]:
        """So many rounds, conversation after conversation, the last one perhaps cut short. All conversations start at once."""
        check_count(num_requests)
        rng = np.random.default_rng(seed)
        shapes: list[RequestShape] = []
        while len(shapes) < num_requests:
            first = len(shapes)
            for shape in self._conversation(rng):
                shapes.append(shape if shape.after is None else shape._replace(after=first + shape.after))
        return shapes[:num_requests]

    def _conversation(self, rng: np.random.Generator) -> list[RequestShape]:
        # A round has at least two tokens; those that can never fit need not be drawn.
        num_rounds = min(int(rng.geometric(1 / self.mean_rounds)), self.max_total_tokens)
        users, outputs = (
            whole_tokens(quantiles, 1 - rng.random(num_rounds)) for quantiles in (self.user_tokens, self.output_tokens)
        )
        thinks_s = rng.exponential(self.mean_think_s, num_rounds)
        totals = self.num_system_tokens + np.cumsum(users + outputs)
        rounds = [
            RequestShape(
                arrival_s=0.0,
                num_prompt_tokens=int(totals[index] - outputs[index]),
                num_output_tokens=int(outputs[index]),
                after=index - 1 if index else None,
                think_s=float(thinks_s[index]) if index else 0.0,
                num_shared_tokens=0 if index else self.num_system_tokens,
            )
            for index in range(num_rounds)
        ]
        return fit_within(rounds, self.max_total_tokens)
