"""How metrics are named: ours after a prefix, or vLLM's own names with its labels; and the buckets of histograms."""

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

OWN_PREFIX = "sarathi_jax"
VLLM = "vllm"

# vLLM's, so that a board's quantiles mean the same over both.
REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TTFT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
VLLM_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
STEP_TOKENS = (1, *(2**power for power in range(3, 15)))
SAMPLES = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
# Ours go lower: a queue, a prompt or a token of a small model is over before vLLM's first bucket ends.
OWN_TOKEN_S = (0.001, 0.0025, 0.005, *VLLM_TOKEN_S)
OWN_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, *REQUEST_S)
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10)
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
HTTP_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


def token_counts(max_value: int) -> tuple[int, ...]:
    """1, 2, 5, 10, ... up to max_value."""
    return tuple(
        value
        for power in range(len(str(max_value)))
        for value in (10**power, 2 * 10**power, 5 * 10**power)
        if value <= max_value
    )


class Names:
    """Makes metrics. prefix: `vllm`, for vLLM's names of those that it has; anything else comes before each of ours."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.is_vllm = prefix == VLLM
        self._prefix = OWN_PREFIX if self.is_vllm else prefix
        self._vllm_labels: dict[str, str] = {}

    def begin(self, model_name: str) -> None:
        """Names of vLLM's can be made from now on."""
        self._vllm_labels = {"model_name": model_name, "engine": "0"}

    def own(self, name: str) -> str:
        return f"{self._prefix}_{name}"

    def name(self, own: str, vllm: str | None) -> tuple[str, dict[str, str]]:
        """The name, and the labels that all of its samples have. own: without prefix. vllm: without prefix; None: vLLM has none."""
        if self.is_vllm and vllm is not None:
            return f"{VLLM}:{vllm}", self._vllm_labels
        return self.own(own), {}

    def buckets(self, own: Sequence[float], vllm: Sequence[float]) -> Sequence[float]:
        return vllm if self.is_vllm else own

    def histogram(self, own: str, vllm: str | None, text: str, buckets: Sequence[float]) -> Histogram:
        return self._make(Histogram, own, vllm, text, (), buckets=buckets)

    def counter(self, own: str, vllm: str | None, text: str, label: str | None = None) -> Counter:
        """label: one that samples choose a value of; vLLM's name for it is the same."""
        return self._make(Counter, own, vllm, text, () if label is None else (label,))

    def _make(self, kind: Any, own: str, vllm: str | None, text: str, more: tuple[str, ...], **options: Any) -> Any:
        name, labels = self.name(own, vllm)
        metric = kind(name, text, [*labels, *more], registry=self.registry, **options)
        if more:
            return LabelledBy(metric, tuple(labels.values()))
        return metric.labels(**labels) if labels else metric


class LabelledBy:
    """A metric whose first labels are fixed."""

    def __init__(self, metric: Any, values: tuple[str, ...]) -> None:
        self._metric = metric
        self._values = values

    def labels(self, value: str) -> Any:
        return self._metric.labels(*self._values, value)
