"""Latencies of the last while, as the front sees tokens come: what the page and the log show. Prometheus has its own histograms."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from sarathi_jax.serve.engine_client import Arrival
from sarathi_jax.serve.live_request import LiveRequest
from sarathi_jax.serve.messages import Steps

WINDOW_S = 30.0
MAX_SAMPLES = 20_000
PERCENTILES = (50, 90, 99)


class Window:
    """Values of the last WINDOW_S seconds, at most MAX_SAMPLES."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)

    def add(self, value: float, now_s: float) -> None:
        self._values.append((now_s, value))

    def values(self, now_s: float) -> list[float]:
        while self._values and now_s - self._values[0][0] > WINDOW_S:
            self._values.popleft()
        return [value for _, value in self._values]

    def rate(self, now_s: float) -> float:
        """Their sum a second, since the first of them: a server that has just begun is not slow."""
        values = self.values(now_s)
        return sum(values) / max(now_s - self._values[0][0], 1.0) if values else 0.0


class RecentLatency:
    """An `Observer`. ttft_s and tbt_s, as docs/metrics.md defines them, and tokens a second."""

    def __init__(self) -> None:
        self._ttft_s, self._tbt_s = Window(), Window()
        self._output_tokens, self._prompt_tokens = Window(), Window()
        self._num_prompt_tokens = self._num_hit_tokens = 0

    def tokens(self, arrivals: Sequence[Arrival]) -> None:
        now_s = time.perf_counter()
        for live, _, gap_s, is_first in arrivals:
            if is_first:
                self._ttft_s.add(now_s - live.spec.arrival_s, now_s)
            if gap_s is not None:
                self._tbt_s.add(gap_s, now_s)
        self._output_tokens.add(sum(arrival.num_tokens for arrival in arrivals), now_s)

    def ended(self, live: LiveRequest) -> None:
        if live.done is not None:
            self._num_prompt_tokens += len(live.spec.prompt_token_ids)
            self._num_hit_tokens += live.done.num_prefix_hit_tokens

    def steps(self, message: Steps) -> None:
        self._prompt_tokens.add(sum(step.num_prefill_tokens for step in message.steps), message.now_s)

    def summary(self) -> dict[str, Any]:
        """Of the last while; None where there was nothing."""
        now_s = time.perf_counter()
        num_prompt_tokens = self._num_prompt_tokens
        return {
            "ttft_s": percentiles(self._ttft_s.values(now_s)),
            "tbt_s": percentiles(self._tbt_s.values(now_s)),
            "output_tokens_per_s": self._output_tokens.rate(now_s),
            "prompt_tokens_per_s": self._prompt_tokens.rate(now_s),
            "prefix_hit_rate": self._num_hit_tokens / num_prompt_tokens if num_prompt_tokens else None,
        }


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ranked = sorted(values)
    return {
        f"p{each}": ranked[min(len(ranked) * each // 100, len(ranked) - 1)] if ranked else None for each in PERCENTILES
    }
