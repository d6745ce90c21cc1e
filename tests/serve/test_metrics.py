"""GET /metrics, read by prometheus_client's own parser: counts that are known beforehand, and names that boards ask for."""

import time
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

MAX_SCRAPE_S = 0.05
# What stock Grafana boards and autoscalers for vLLM ask for.
STOCK_VLLM = [
    "e2e_request_latency_seconds_bucket",
    "e2e_request_latency_seconds_sum",
    "e2e_request_latency_seconds_count",
    "time_to_first_token_seconds_bucket",
    "time_to_first_token_seconds_sum",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_bucket",
    "inter_token_latency_seconds_sum",
    "inter_token_latency_seconds_count",
    "request_time_per_output_token_seconds_bucket",
    "request_time_per_output_token_seconds_sum",
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "iteration_tokens_total_count",
    "request_decode_time_seconds_sum",
    "request_prefill_time_seconds_sum",
    "request_queue_time_seconds_sum",
    "request_inference_time_seconds_sum",
    "request_max_num_generation_tokens_sum",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
    "request_success_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "cache_config_info",
    "num_requests_waiting_by_reason",
    "request_params_n_bucket",
    "request_params_max_tokens_bucket",
    "prompt_tokens_by_source_total",
    "admission_rejections_total",
]
VLLM_TTFT = (
    "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 640.0 2560.0 +Inf"
)
VLLM_ITL = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 +Inf"

type Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scrape(server: Any) -> Samples:
    """Name -> labels -> value."""
    time.sleep(0.4)  # until the engine has reported its steps
    samples: Samples = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name][tuple(sorted(labels.items()))]


def test_counts_are_those_of_the_requests(serving: Any) -> None:
    server = serving()
    usages = [server.complete(f"{place} and so on", max_tokens=5, ignore_eos=True)["usage"] for place in range(4)]
    server.complete("two", n=2, max_tokens=3, ignore_eos=True)
    stopped = server.complete("9, 8", max_tokens=400, stop=["a", "e", "1"])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    samples = scrape(server)
    prompts = [usage["prompt_tokens"] for usage in usages]
    assert value(samples, "sarathi_jax_outputs_total", finish_reason="length") == 6
    assert value(samples, "sarathi_jax_outputs_total", finish_reason="stop") == 1
    assert value(samples, "sarathi_jax_ttft_seconds_count") == 6
    assert value(samples, "sarathi_jax_request_prompt_tokens_count") == 6
    assert value(samples, "sarathi_jax_request_prompt_tokens_sum") >= sum(prompts)
    num_stopped = value(samples, "sarathi_jax_output_tokens_total") - 4 * 5 - 2 * 3
    assert num_stopped >= stopped["usage"]["completion_tokens"]
    # One gap fewer than tokens, of each of the seven outputs.
    assert value(samples, "sarathi_jax_tbt_seconds_count") == 4 * 4 + 2 * 2 + num_stopped - 1
    kinds = samples["sarathi_jax_steps_total"].values()
    assert (
        sum(kinds)
        == value(samples, "sarathi_jax_step_tokens_count")
        == value(samples, "sarathi_jax_step_seconds_count")
    )


def test_times_add_up(serving: Any) -> None:
    server = serving(engine={"step_s": 0.02})
    timing = server.complete("go on", max_tokens=6, ignore_eos=True, timing=True)["timing"]
    samples = scrape(server)
    total = {
        name: value(samples, f"sarathi_jax_{name}_seconds_sum")
        for name in ("queue", "prefill", "decode", "e2e", "ttft")
    }
    assert total["queue"] + total["prefill"] == pytest.approx(total["ttft"], abs=1e-6)
    assert total["ttft"] + total["decode"] == pytest.approx(total["e2e"], abs=1e-6)
    assert total["ttft"] == pytest.approx(timing["ttft_s"], abs=1e-6)
    assert total["decode"] >= 5 * 0.02 * 0.9
    assert value(samples, "sarathi_jax_tpot_seconds_sum") == pytest.approx(total["decode"] / 5, abs=1e-6)


def test_prefix_hits_are_counted(serving: Any) -> None:
    server = serving()
    prompt = "the same long beginning " * 12
    usages = [server.complete(prompt, max_tokens=1)["usage"] for _ in range(3)]
    samples = scrape(server)
    num_hits = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert num_hits > 0
    assert value(samples, "sarathi_jax_prefix_hit_tokens_total") == num_hits
    assert value(samples, "sarathi_jax_prefix_queries_tokens_total") == sum(usage["prompt_tokens"] for usage in usages)


def test_at_rest_gauges_are_at_0_and_counters_only_grow(serving: Any) -> None:
    server = serving()
    before = scrape(server)
    for _ in range(3):
        server.complete("once more", max_tokens=40)
    after = scrape(server)
    for name in ("requests_running", "requests_waiting", "kv_usage_ratio", "http_requests_open"):
        assert value(after, f"sarathi_jax_{name}") == 0, name
    for name, samples in before.items():
        if name.endswith(("_total", "_count", "_bucket", "_sum")):
            assert all(after[name][labels] >= number for labels, number in samples.items()), name


@pytest.mark.parametrize(("policy", "does_stall"), [("sarathi", False), ("vllm", True)])
def test_stalls_are_decodes_that_steps_left_out(serving: Any, policy: str, does_stall: bool) -> None:
    """A prompt that comes while an output grows."""
    server = serving(engine={"policy": policy, "token_budget": 2048, "step_s": 0.02})
    body = {"model": "demo", "prompt": "go on", "max_tokens": 40, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", f"{server.url}/v1/completions", json=body) as growing:
        lines = growing.iter_lines()
        next(lines)
        server.complete("and another one", max_tokens=2, ignore_eos=True)
        assert list(lines)
    assert (value(scrape(server), "sarathi_jax_stalls_total") > 0) is does_stall


def test_stalls_that_nobody_sees_are_not_said_to_be_0(serving: Any) -> None:
    server = serving(engine={"flight_recorder": 0})
    server.complete("go on", max_tokens=3, ignore_eos=True)
    assert value(scrape(server), "sarathi_jax_step_tokens_count") == 3
    assert "sarathi_jax_stalls_total" not in scrape(server)


def test_counters_outlive_the_engine(serving: Any) -> None:
    server = serving(engine={"dies_at_step": 12})
    assert server.complete("go on", max_tokens=20, ignore_eos=True)["usage"]["completion_tokens"] == 20
    samples = scrape(server)
    assert value(samples, "sarathi_jax_engine_restarts_total") >= 1
    assert value(samples, "sarathi_jax_output_tokens_total") == 20
    assert value(samples, "sarathi_jax_engine_state", state="ready") == 1


def test_refusals_and_http_by_route(serving: Any) -> None:
    server = serving(max_queued_requests=0, engine={"max_num_seqs": 1, "step_s": 0.05})
    with server.http.stream(
        "POST",
        f"{server.url}/v1/completions",
        json={"model": "demo", "prompt": "a", "stream": True, "max_tokens": 60, "ignore_eos": True},
    ) as response:
        lines = response.iter_lines()  # kept: without it the connection is closed
        next(lines)
        assert server.post("/v1/completions", {"model": "demo", "prompt": "b"}).status_code == 503
        running = scrape(server)
        assert value(running, "sarathi_jax_requests_running") == 1
        assert value(running, "sarathi_jax_kv_usage_ratio") > 0
        list(lines)
    server.get("/v1/models/secret-name")
    server.get("/secret-path")
    server.http.request("BREW", f"{server.url}/health")
    samples = scrape(server)
    assert value(samples, "sarathi_jax_rejections_total", code="server_overloaded") == 1
    assert value(samples, "http_requests_total", handler="/v1/completions", method="POST", status="503") == 1
    assert value(samples, "http_requests_total", handler="/v1/models/{name:path}", method="GET", status="404") == 1
    assert value(samples, "http_requests_total", handler="none", method="GET", status="404") == 1
    assert "secret" not in server.get("/metrics").text
    assert "BREW" not in server.get("/metrics").text


def test_a_request_whose_client_leaves_is_an_abort(serving: Any) -> None:
    server = serving(engine={"step_s": 0.02})
    body = {"model": "demo", "prompt": "a", "stream": True, "max_tokens": 500, "ignore_eos": True}
    with server.http.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        next(response.iter_lines())
    assert value(scrape(server), "sarathi_jax_outputs_total", finish_reason="abort") == 1


def test_vllms_names_labels_and_buckets(serving: Any) -> None:
    server = serving(metrics_prefix="vllm")
    usage = server.complete("a b c", max_tokens=5, ignore_eos=True)["usage"]
    samples = scrape(server)
    assert [name for name in STOCK_VLLM if f"vllm:{name}" not in samples] == []
    labels = {"engine": "0", "model_name": "demo"}
    assert value(samples, "vllm:generation_tokens_total", **labels) == 5
    assert value(samples, "vllm:prompt_tokens_total", **labels) == usage["prompt_tokens"]
    assert value(samples, "vllm:request_success_total", finished_reason="length", **labels) == 1
    for name, bounds in (("time_to_first_token", VLLM_TTFT), ("inter_token_latency", VLLM_ITL)):
        buckets = [dict(key)["le"] for key in samples[f"vllm:{name}_seconds_bucket"]]
        assert buckets == bounds.split()
    for name, found in samples.items():
        if name.startswith("vllm:"):
            assert all({**dict(key), **labels} == dict(key) for key in found), name


def test_a_scraper_that_would_rather_have_openmetrics_gets_vllms_colons_too(serving: Any) -> None:
    server = serving(metrics_prefix="vllm")
    response = server.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "\nvllm:num_requests_running{" in response.text


def test_a_scrape_is_quick(server: Any) -> None:
    server.complete("a", max_tokens=5)
    metrics = server.front.metrics
    start_s = time.thread_time()
    for _ in range(10):
        metrics._written = (float("-inf"), b"")  # as after a while
        metrics.write()
    assert (time.thread_time() - start_s) / 10 < MAX_SCRAPE_S


def test_the_lag_of_the_event_loop(serving: Any) -> None:
    server = serving()
    server.run_in_loop(lambda: time.sleep(0.3))
    samples = scrape(server)
    assert value(samples, "sarathi_jax_event_loop_lag_max_seconds") >= 0.15
    assert value(samples, "sarathi_jax_event_loop_lag_seconds_count") >= 1


@pytest.mark.parametrize("prefix", ["sarathi_jax", "vllm"])
def test_a_server_that_starts_says_so(serving: Any, prefix: str) -> None:
    server = serving(waits=False, engine={"start_s": 1.0}, metrics_prefix=prefix)
    starting = scrape(server)
    assert value(starting, "sarathi_jax_engine_state", state="starting") == 1
    assert "process_resident_memory_bytes" in starting
    server.wait()
    assert value(scrape(server), "sarathi_jax_engine_state", state="ready") == 1


def test_a_client_that_leaves_before_the_answer(serving: Any) -> None:
    server = serving(engine={"step_s": 0.05})
    with pytest.raises(httpx2.TimeoutException):
        server.http.post(
            f"{server.url}/v1/completions",
            json={"model": "demo", "prompt": "a", "max_tokens": 400, "ignore_eos": True},
            timeout=0.3,
        )
    assert value(scrape(server), "http_requests_total", handler="/v1/completions", method="POST", status="499") == 1
