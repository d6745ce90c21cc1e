"""What comes of requests and steps, counted for Prometheus as it happens: two `Observer`s."""

from collections.abc import Sequence

from prometheus_client import Counter, Histogram

from sarathi_jax.serve.engine_client import Arrival
from sarathi_jax.serve.live_request import LiveRequest
from sarathi_jax.serve.messages import Step, Steps
from sarathi_jax.serve.metric_names import (
    OWN_REQUEST_S,
    OWN_TOKEN_S,
    PREEMPTIONS,
    REQUEST_S,
    SAMPLES,
    STEP_S,
    STEP_TOKENS,
    TTFT_S,
    VLLM_TOKEN_S,
    Names,
    token_counts,
)

FINISH_REASONS = ("stop", "length", "abort", "error")
LEAVING = frozenset({"deadline_exceeded", "server_shutting_down"})  # the engine was not at fault


class RequestMetrics:
    """Of requests. Made when an engine has been ready."""

    def __init__(self, names: Names, max_model_len: int, tbt_slo_ms: float | None) -> None:
        token_s, request_s = names.buckets(OWN_TOKEN_S, VLLM_TOKEN_S), names.buckets(OWN_REQUEST_S, REQUEST_S)
        counts = token_counts(max_model_len)
        time_of, new, histogram = "request_{}_time_seconds".format, names.counter, names.histogram
        self._goal_s = None if tbt_slo_ms is None else tbt_slo_ms / 1e3
        self._ttft = histogram("ttft_seconds", "time_to_first_token_seconds", "Arrival to first token.", TTFT_S)
        self._tbt = histogram("tbt_seconds", "inter_token_latency_seconds", "Token to token of one output.", token_s)
        self._tpot = histogram(
            "tpot_seconds", "request_time_per_output_token_seconds", "Mean time between tokens of a request.", token_s
        )
        self._e2e = histogram("e2e_seconds", "e2e_request_latency_seconds", "Arrival to last token.", request_s)
        self._queue = histogram("queue_seconds", time_of("queue"), "Arrival to the start of the first step.", request_s)
        self._prefill = histogram("prefill_seconds", time_of("prefill"), "First step to first token.", request_s)
        self._decode = histogram("decode_seconds", time_of("decode"), "First token to last token.", request_s)
        self._inference = histogram("inference_seconds", time_of("inference"), "First step to last token.", request_s)
        self._prompt_sizes = histogram("request_prompt_tokens", "request_prompt_tokens", "Tokens of a prompt.", counts)
        self._output_sizes = histogram(
            "request_output_tokens", "request_generation_tokens", "Tokens of an output.", counts
        )
        self._prompt_tokens = new("prompt_tokens", "prompt_tokens", "Tokens of prompts that were read.")
        self._output_tokens = new("output_tokens", "generation_tokens", "Tokens that were generated.")
        self._late_tokens = new("late_tokens", None, "Tokens that came later after the one before than tbt_slo_ms.")
        self._queries = new(
            "prefix_queries_tokens", "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._hits = new("prefix_hit_tokens", "prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._ends = new(
            "outputs",
            "request_success",
            "Outputs that ended, by reason; a request with n samples has n.",
            "finished_reason" if names.is_vllm else "finish_reason",
        )
        for reason in FINISH_REASONS:
            self._ends.labels(reason)
        self._vllm_only = VllmRequestMetrics(names, counts) if names.is_vllm else None

    def tokens(self, arrivals: Sequence[Arrival]) -> None:
        self._output_tokens.inc(sum(arrival.num_tokens for arrival in arrivals))
        for live, _, gap_s, is_first in arrivals:
            if is_first:
                self._prompt_tokens.inc(len(live.spec.prompt_token_ids))
                if live.first_token_s is not None:
                    self._ttft.observe(live.first_token_s - live.spec.arrival_s)
            if gap_s is not None:
                self._tbt.observe(gap_s)
                if self._goal_s is not None and gap_s > self._goal_s:
                    self._late_tokens.inc()

    def ended(self, live: LiveRequest) -> None:
        is_fault = live.lost is not None and live.lost.code not in LEAVING
        for reason in live.reasons:
            self._ends.labels(reason or ("error" if is_fault else "abort")).inc()
        if live.first_token_s is not None and live.last_token_s is not None:
            self._times(live, live.first_token_s, live.last_token_s)
        if live.done is not None:
            num_prompt_tokens = len(live.spec.prompt_token_ids)
            self._queries.inc(num_prompt_tokens)
            self._hits.inc(live.done.num_prefix_hit_tokens)
        if self._vllm_only is not None:
            self._vllm_only.ended(live)

    def steps(self, message: Steps) -> None:
        pass

    def _times(self, live: LiveRequest, first_s: float, last_s: float) -> None:
        arrival_s = live.spec.arrival_s
        self._prompt_sizes.observe(len(live.spec.prompt_token_ids))
        for token_ids in live.token_ids:
            self._output_sizes.observe(len(token_ids))
        most = max(map(len, live.token_ids))
        if most > 1:
            self._tpot.observe((last_s - first_s) / (most - 1))
        self._e2e.observe(last_s - arrival_s)
        self._decode.observe(last_s - first_s)
        delay_s = None if live.done is None else live.done.scheduling_delay_s
        if delay_s is not None:
            self._queue.observe(delay_s)
            self._prefill.observe(max(first_s - arrival_s - delay_s, 0.0))
            self._inference.observe(max(last_s - arrival_s - delay_s, 0.0))


class VllmRequestMetrics:
    """What vLLM says besides."""

    def __init__(self, names: Names, counts: tuple[int, ...]) -> None:
        def histogram(name: str, text: str, buckets: tuple[int, ...]) -> Histogram:
            return names.histogram("", name, text, buckets)

        self._n = histogram("request_params_n", "Samples of a request.", SAMPLES)
        self._max_tokens = histogram("request_params_max_tokens", "Most tokens of an output.", counts)
        self._longest = histogram("request_max_num_generation_tokens", "Tokens of a request's longest output.", counts)
        self._preemptions = histogram("request_num_preemptions", "Preemptions of a request.", PREEMPTIONS)
        self._computed = histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens not found in the cache.", counts
        )
        self._cached = names.counter("", "prompt_tokens_cached", "Prompt tokens found in the prefix cache.")
        self._by_source = names.counter(
            "", "prompt_tokens_by_source", "Prompt tokens, by where their KV came from.", "source"
        )
        for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
            self._by_source.labels(source)

    def ended(self, live: LiveRequest) -> None:
        params, done = live.spec.params, live.done
        self._n.observe(params.n)
        if params.max_tokens is not None:
            self._max_tokens.observe(params.max_tokens)
        self._longest.observe(max(map(len, live.token_ids)))
        if done is not None:
            num_computed = len(live.spec.prompt_token_ids) - done.num_prefix_hit_tokens
            self._preemptions.observe(done.num_preemptions)
            self._computed.observe(num_computed)
            self._cached.inc(done.num_prefix_hit_tokens)
            self._by_source.labels("local_cache_hit").inc(done.num_prefix_hit_tokens)
            self._by_source.labels("local_compute").inc(num_computed)


class EngineCount:
    """A counter that follows a count of the engine's: it goes on where another engine begins at 0 again."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last = 0

    def follow(self, count: int) -> None:
        self._counter.inc(count - self._last if count >= self._last else count)
        self._last = count


class StepMetrics:
    """Of steps, and of what they cost requests."""

    def __init__(self, names: Names) -> None:
        self._tokens = names.histogram("step_tokens", "iteration_tokens_total", "Tokens of a step.", STEP_TOKENS)
        self._seconds = names.histogram("step_seconds", None, "Time of a step.", STEP_S)
        self._bucket_tokens = names.counter("step_bucket_tokens", None, "Tokens of steps, padding included.")
        self._kinds = names.counter("steps", None, "Steps: decode, prefill, or hybrid with both.", "kind")
        self._preemptions = names.counter(
            "preemptions", "num_preemptions", "Requests that lost their pages for a while."
        )
        self._late_compiles = EngineCount(
            names.counter("late_compiles", None, "Programs compiled while requests waited for them.")
        )
        self._names = names
        self._stalls: EngineCount | None = None
        for kind in ("decode", "prefill", "hybrid"):
            self._kinds.labels(kind)
        self._last_end_s: dict[int, float] = {}

    def tokens(self, arrivals: Sequence[Arrival]) -> None:
        pass

    def ended(self, live: LiveRequest) -> None:
        pass

    def steps(self, message: Steps) -> None:
        for step in message.steps:
            self._step(step)
        self._late_compiles.follow(message.num_compiled_late)
        if message.num_stalls is not None:
            if self._stalls is None:
                text = "Steps that left out a running decode, added up over decodes."
                self._stalls = EngineCount(self._names.counter("stalls", None, text))
            self._stalls.follow(message.num_stalls)

    def _step(self, step: Step) -> None:
        self._tokens.observe(step.num_decode_tokens + step.num_prefill_tokens)
        # The part of a step in which the one before it still ran is that one's.
        self._seconds.observe(step.end_s - max(step.start_s, self._last_end_s.get(step.replica, step.start_s)))
        self._last_end_s[step.replica] = step.end_s
        self._bucket_tokens.inc(step.bucket_tokens)
        kind = "hybrid" if step.num_decode_tokens and step.num_prefill_tokens else "prefill"
        self._kinds.labels(kind if step.num_prefill_tokens else "decode").inc()
        self._preemptions.inc(step.num_preemptions)
