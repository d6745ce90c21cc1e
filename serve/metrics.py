"""What GET /metrics says, by the definitions of docs/metrics.md: our own names, or vLLM's where it has the metric and they were asked for.

Every label's values are from a closed set: no text of a client becomes one.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sarathi_jax import __version__
from sarathi_jax.serve.admission import Admission
from sarathi_jax.serve.engine_client import EngineClient
from sarathi_jax.serve.errors import CLIENT_CLOSED
from sarathi_jax.serve.log import LineHandler
from sarathi_jax.serve.messages import EngineFacts
from sarathi_jax.serve.metric_names import HTTP_S, LAG_S, Names
from sarathi_jax.serve.request_metrics import RequestMetrics, StepMetrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LAG_WINDOW_S = 15.0
STATES = ("starting", "ready", "restarting", "dead")
CACHE_S = 0.1  # scrapes that come faster than this get the same answer


class Metrics:
    """One server's metrics. Those of requests and steps are there from `begin` on, when the engine has been ready."""

    def __init__(self, prefix: str, client: EngineClient, admission: Admission) -> None:
        disable_created_metrics()
        self.names = Names(prefix, CollectorRegistry(auto_describe=False))
        self._client = client
        registry = self.names.registry
        ProcessCollector(registry=registry)
        ProcessCollector(self.names.own("engine"), pid=lambda: client.process_id or 0, registry=registry)
        labels = ["handler", "method", "status"]
        self._http_requests = Counter("http_requests", "HTTP requests that were answered.", labels, registry=registry)
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "From a request's head to the end of its answer.",
            labels[:2],
            buckets=HTTP_S,
            registry=registry,
        )
        self._lag = self.names.histogram("event_loop_lag_seconds", None, "How late the front's event loop was.", LAG_S)
        self._max_lag = MaxLag()
        self._state = StateCollector(self.names, client, admission, self._max_lag)
        registry.register(self._state)
        self._written = (float("-inf"), b"")

    def begin(self, model_name: str) -> None:
        """The engine is ready; from now on requests are served."""
        facts = self._client.facts
        assert facts is not None, "the engine has been ready"
        self.names.begin(model_name)
        self._state.begin(facts)
        self._client.observers += [
            RequestMetrics(self.names, facts.limits.max_model_len, facts.tbt_slo_ms),
            StepMetrics(self.names),
        ]

    def visited(self, scope: Any, status: int, seconds: float) -> None:
        """A request was answered, or its client left before: then the status is 0, or 499."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        self._http_requests.labels(route, method, str(status or CLIENT_CLOSED)).inc()
        self._http_seconds.labels(route, method).observe(seconds)

    def watch_log(self, log: LineHandler) -> None:
        """Say how many lines of it were dropped."""
        self._state.lines_dropped = lambda: log.num_dropped

    def lag(self, seconds: float) -> None:
        """The event loop was so late."""
        self._lag.observe(seconds)
        self._max_lag.add(seconds)

    def write(self) -> bytes:
        """All of it, in the text format that every scraper takes: OpenMetrics would make vllm_ of vllm:."""
        now_s = time.perf_counter()
        written_s, text = self._written
        if now_s - written_s > CACHE_S:
            text = generate_latest(self.names.registry)
            self._written = (now_s, text)
        return text


class MaxLag:
    """The worst of the last one or two windows."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self._before = self._now = 0.0

    def add(self, seconds: float) -> None:
        now_s = time.perf_counter()
        if now_s - self._start_s > LAG_WINDOW_S:
            self._start_s, self._before, self._now = now_s, self._now, 0.0
        self._now = max(self._now, seconds)

    @property
    def seconds(self) -> float:
        return max(self._before, self._now)


class StateCollector(Collector):
    """How the server stands at this moment."""

    def __init__(self, names: Names, client: EngineClient, admission: Admission, lag: MaxLag) -> None:
        self._names = names
        self._client = client
        self._admission = admission
        self._lag = lag
        self.lines_dropped: Callable[[], int] = lambda: 0
        self._info: dict[str, str] = {"version": __version__}
        self._cache_info: dict[str, str] | None = None

    def begin(self, facts: EngineFacts) -> None:
        self._info |= {
            "model": facts.model,
            "policy": facts.policy,
            "device": ",".join(sorted(set(facts.devices))),
            "mesh": facts.mesh or "",
            "dtype": facts.dtype,
        }
        limits = facts.limits
        self._cache_info = {
            "block_size": str(limits.page_size),
            "num_gpu_blocks": str(limits.num_pages * facts.num_replicas),
        }

    def collect(self) -> Iterator[Any]:
        yield self._gauge("info", None, "What is served, in labels.", [(self._info, 1)])
        yield self._gauge(
            "engine_state",
            None,
            "1 for the state that the engine is in.",
            [({"state": state}, int(state == self._client.state)) for state in STATES],
        )
        yield self._gauge(
            "http_requests_open", None, "Requests that were let in and are not over.", [({}, self._admission.num_open)]
        )
        yield self._gauge(
            "event_loop_lag_max_seconds",
            None,
            f"How late the event loop was at worst in the last {LAG_WINDOW_S:g} s.",
            [({}, self._lag.seconds)],
        )
        yield self._counter("engine_restarts", None, "The engine was started again.", [({}, self._client.num_restarts)])
        refused = self._admission.refused
        yield self._counter(
            "rejections",
            None,
            "Requests that were not let in, by the error's code.",
            [({"code": code}, refused[code]) for code in ("rate_limit_exceeded", "server_overloaded")],
        )
        yield self._counter(
            "log_lines_dropped", None, "Lines that the log's reader was too slow for.", [({}, self.lines_dropped())]
        )
        if self._cache_info is not None:
            yield from self._engine(self._cache_info)

    def _engine(self, cache_info: dict[str, str]) -> Iterator[Any]:
        steps = self._client.steps if self._client.state == "ready" else None
        running, waiting = (steps.num_running, steps.num_waiting) if steps else (0, self._client.num_live)
        num_pages = int(cache_info["num_gpu_blocks"])
        used, cached = (steps.num_used_pages, steps.num_cached_pages) if steps else (0, 0)
        yield self._gauge("requests_running", "num_requests_running", "Requests in the running batch.", [({}, running)])
        yield self._gauge("requests_waiting", "num_requests_waiting", "Requests that wait.", [({}, waiting)])
        yield self._gauge(
            "kv_usage_ratio",
            "kv_cache_usage_perc",
            "Share of the KV pages that requests hold, from 0 to 1; pages that are only kept for prefixes are free.",
            [({}, used / num_pages)],
        )
        yield self._gauge(
            "kv_pages",
            None,
            "KV pages: used by requests, cached for prefixes, or free.",
            [({"state": "used"}, used), ({"state": "cached"}, cached), ({"state": "free"}, num_pages - used - cached)],
        )
        if self._names.is_vllm:
            yield from self._vllm_only(cache_info, waiting)

    def _vllm_only(self, cache_info: dict[str, str], waiting: int) -> Iterator[Any]:
        yield self._gauge(
            "",
            "num_requests_waiting_by_reason",
            "Requests that wait.",
            [({"reason": "capacity"}, waiting), ({"reason": "deferred"}, 0)],
        )
        yield self._gauge("", "cache_config_info", "The KV cache, in labels.", [(cache_info, 1)])
        yield self._counter(
            "",
            "admission_rejections",
            "Requests that were not let in.",
            [({}, self._admission.refused.total())],
        )

    def _gauge(self, own: str, vllm: str | None, text: str, samples: Sequence[tuple[dict[str, str], float]]) -> Any:
        return self._family(GaugeMetricFamily, own, vllm, text, samples)

    def _counter(self, own: str, vllm: str | None, text: str, samples: Sequence[tuple[dict[str, str], float]]) -> Any:
        return self._family(CounterMetricFamily, own, vllm, text, samples)

    def _family(
        self, kind: Any, own: str, vllm: str | None, text: str, samples: Iterable[tuple[dict[str, str], float]]
    ) -> Any:
        name, labels = self._names.name(own, vllm)
        samples = [({**labels, **more}, value) for more, value in samples]
        family = kind(name, text, labels=list(samples[0][0]))
        for values, value in samples:
            family.add_metric(list(values.values()), value)
        return family
