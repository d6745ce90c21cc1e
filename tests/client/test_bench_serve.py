"""`bench serve` against a server whose delays are known: what is measured is what was made."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.cli.main import main

SMALL = "--num-requests 4 --prompt-tokens 20 --output-tokens 6"


@pytest.fixture
def bench(server: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command with a line of words. Returns: its JSON; `code` is the exit code that is asked for."""

    def run(line: str, code: int = 0) -> dict[str, Any]:
        assert main(["bench", "serve", "--url", server.url, "--json", *line.split()]) == code
        return json.loads(capsys.readouterr().out)

    return run


def test_latencies_are_the_servers_delays(server: Any, bench: Any) -> None:
    server.first_s, server.gap_s = 0.12, 0.03
    report = bench(SMALL)
    trial = report["trials"][0]
    latencies = trial["latencies"]
    assert latencies["ttft_s"]["p50"] == pytest.approx(0.12, abs=0.04)
    assert latencies["tbt_s"]["p50"] == pytest.approx(0.03, abs=0.01)
    assert latencies["tpot_s"]["p50"] == pytest.approx(0.03, abs=0.01)
    assert latencies["e2e_s"]["p50"] == pytest.approx(0.12 + 5 * 0.03, abs=0.06)
    assert trial["median_itl_ms"] == pytest.approx(1e3 * latencies["tbt_s"]["p50"])
    assert trial["p99_ttft_ms"] == pytest.approx(1e3 * latencies["ttft_s"]["p99"])
    assert (trial["num_prompt_tokens"], trial["num_output_tokens"]) == (4 * 20, 4 * 6)
    assert trial["output_throughput"] == pytest.approx(24 / trial["duration_s"])
    assert report["model"] == "fake-model"


def test_chunks_of_several_tokens_count_as_the_usage_says(server: Any, bench: Any) -> None:
    server.gap_s, server.chunk_tokens = 0.03, 3
    trial = bench(SMALL)["trials"][0]
    assert (trial["num_token_chunks"], trial["num_output_tokens"]) == (8, 24)
    assert trial["latencies"]["tbt_s"]["p50"] == pytest.approx(0.03, abs=0.01)
    assert trial["latencies"]["tpot_s"]["p50"] == pytest.approx(0.03 / 5, abs=0.002)


@pytest.mark.parametrize(
    ("usage", "refuses", "counted"),
    [
        ("continuous", set(), "usage of each chunk"),
        ("final", set(), "usage"),
        ("final", {"continuous_usage_stats"}, "usage"),
        ("final", {"stream_options"}, "one a chunk"),
        ("none", set(), "one a chunk"),
    ],
)
@pytest.mark.parametrize("api", ["", "--chat"])
def test_tokens_are_counted_by_the_best_that_the_server_tells(
    server: Any, bench: Any, usage: str, refuses: set[str], counted: str, api: str
) -> None:
    server.usage, server.refuses = usage, refuses
    report = bench(f"{SMALL} {api}")
    assert report["tokens_counted_by"] == counted
    assert (report["trials"][0]["num_token_chunks"], report["trials"][0]["num_output_tokens"]) == (24, 24)


def test_rejected_requests_stand_apart_from_failed_ones(server: Any, bench: Any) -> None:
    server.statuses = [200, 429, 503, 500]
    trial = bench(f"{SMALL} --ttft-slo-ms 60000")["trials"][0]
    assert (trial["num_completed"], trial["num_rejected"], trial["num_failed"]) == (1, 2, 1)
    assert trial["errors"] == {"http_429": 1, "http_503": 1, "http_500": 1}
    assert trial["first_error"].startswith("HTTP ")
    assert (trial["goodput"]["num_good"], trial["goodput"]["share"]) == (1, 0.25)
    assert trial["does_hold"] is False


def test_each_rate_is_a_trial_and_the_capacity_the_highest_that_holds(server: Any, bench: Any) -> None:
    # 1 token after 0.1 s; the median goal of 1 ms can't be kept by any, that of 60 s by all.
    server.first_s = 0.1
    words = "--num-requests 3 --prompt-tokens 9 --output-tokens 2 --request-rate 20,40 --tbt-slo-ms 60000"
    report = bench(words)
    assert [each["request_rate"] for each in report["trials"]] == [20, 40]
    assert report["capacity_requests_per_s"] == 40
    assert bench(f"{words} --max-median-ttft-s 0.001")["capacity_requests_per_s"] == 0


def test_a_rate_is_kept_and_a_slow_server_hides_no_queue(server: Any, bench: Any) -> None:
    server.first_s = 0.3
    trial = bench("--num-requests 11 --output-tokens 2 --request-rate 20 --arrivals uniform")["trials"][0]
    assert trial["duration_s"] == pytest.approx(10 / 20 + 0.3, abs=0.1)
    assert trial["backlog_drift"] == pytest.approx((0.5 + 0.3) / 0.5, abs=0.2)
    assert server.most_running == pytest.approx(6, abs=2)  # each stays 0.3 s, and 20 come a second


def test_so_many_requests_run_at_a_time(server: Any, bench: Any) -> None:
    server.first_s = 0.05
    report = bench("--num-requests 6 --output-tokens 2 --concurrency 2,3")
    assert [each["concurrency"] for each in report["trials"]] == [2, 3]
    assert server.most_running == 3
    assert report["trials"][0]["duration_s"] >= 3 * 0.05
    assert report["trials"][0]["latencies"]["ttft_s"]["p50"] < 0.09  # they arrive when there is room


def test_the_sweep_finds_the_rate_at_which_a_server_falls_behind(server: Any, bench: Any) -> None:
    """One request after another, 50 ms each: of 8 that come at a rate r the last waits 7 * (50 ms - 1 / r), which is 70 ms at 25 a second."""
    server.line_s = 0.05
    words = "--num-requests 8 --output-tokens 1 --arrivals uniform --granularity 0.5"
    report = bench(f"{words} --sweep --request-rate 8 --ttft-slo-ms 120")
    assert [each["request_rate"] for each in report["trials"]][:2] == [8, 16]
    assert 8 <= report["capacity_requests_per_s"] <= 26
    assert any(not each["does_hold"] for each in report["trials"])


@pytest.mark.parametrize(("goal_ms", "capacity"), [(0.001, 0.0), (60000, None)])
def test_a_sweep_ends_where_no_other_rate_can_be_different(
    server: Any, bench: Any, goal_ms: float, capacity: float | None
) -> None:
    server.first_s = 0.01
    report = bench(f"--num-requests 3 --output-tokens 1 --sweep --request-rate 20 --ttft-slo-ms {goal_ms}")
    assert report["capacity_requests_per_s"] == capacity
    assert len(report["trials"]) <= 8


def test_prompts_are_new_in_each_trial_and_of_the_length_asked_for(server: Any, bench: Any) -> None:
    bench("--num-requests 2 --prompt-tokens 33 --output-tokens 2 --concurrency 1,2")
    prompts = [tuple(each["prompt"]) for each in server.bodies[1:]]
    assert len(set(prompts)) == 4
    assert {len(each) for each in prompts} == {33}
    assert min(map(min, prompts)) >= 16 and max(map(max, prompts)) < 256


@pytest.mark.parametrize("api", ["--prompts text", "--chat"])
def test_texts_are_as_long_as_the_server_counts_them(server: Any, bench: Any, api: str) -> None:
    report = bench(f"--num-requests 3 --prompt-tokens 101 --output-tokens 2 {api}")
    assert report["prompts"] == "text"
    assert report["trials"][0]["num_prompt_tokens"] == pytest.approx(3 * 101, abs=3)


def test_rounds_of_a_conversation_carry_what_was_said(server: Any, bench: Any) -> None:
    bench("--chat --lengths chats --num-requests 8 --mean-rounds 3 --think-s 0.01 --max-total-tokens 900")
    longest = max((each["messages"] for each in server.bodies), key=len)
    assert [each["role"] for each in longest[:3]] == ["user", "assistant", "user"]
    assert longest[1]["content"].startswith("t0 t1 ")
    assert any(body["messages"] == longest[:1] for body in server.bodies)


def test_fields_are_sent_and_left_out_as_asked(server: Any, bench: Any) -> None:
    bench(f"{SMALL} --num-requests 1")
    assert {"temperature", "ignore_eos"} <= server.bodies[-1].keys()
    main(
        [
            "bench",
            "serve",
            "--url",
            server.url,
            "--num-requests",
            "1",
            "--no-ignore-eos",
            "--extra-body",
            '{"temperature":null,"top_p":0.5}',
        ]
    )
    assert not {"temperature", "ignore_eos"} & server.bodies[-1].keys()
    assert server.bodies[-1]["top_p"] == 0.5


def test_connections_are_used_again_and_a_server_that_closes_them_is_no_error(server: Any, bench: Any) -> None:
    bench(f"{SMALL} --num-requests 8 --concurrency 2")
    assert len(server.ports) <= 3
    server.closes_connections = True
    assert bench(f"{SMALL} --num-requests 8 --concurrency 2")["trials"][0]["num_completed"] == 8
    assert len(server.ports) >= 10


def test_the_report_for_people_and_the_picture(server: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture, out = tmp_path / "rates.png", tmp_path / "out.json"
    words = f"{SMALL} --request-rate 30,60 --tbt-slo-ms 60000 --plot {picture} --out {out}"
    assert main(["bench", "serve", "--url", server.url, *words.split()]) == 0
    printed = capsys.readouterr().out
    assert "30 req/s: 4 of 4 requests in " in printed
    assert "goodput   " in printed and "the load holds" in printed
    assert "capacity  60 requests/s keep the goals" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(out.read_text())["trials"]) == 2


def test_an_interrupt_reports_what_there_is(server: Any) -> None:
    server.first_s = 0.2
    words = "--num-requests 100 --output-tokens 2 --concurrency 1 --json"
    process = subprocess.Popen(
        [sys.executable, "-m", "sarathi_jax.cli.main", "bench", "serve", "--url", server.url, *words.split()],
        stdout=subprocess.PIPE,
        text=True,
    )
    while len(server.bodies) < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    trial = json.loads(output)["trials"][0]
    assert (process.returncode, trial["is_interrupted"]) == (130, True)
    assert 1 <= trial["num_completed"] < 10


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--concurrency 2 --request-rate 1", "requests come at a rate or so many at a time, got both"),
        ("--sweep", "--sweep needs a goal to keep, got none: add --tbt-slo-ms or --ttft-slo-ms."),
        ("--sweep --request-rate 1,2 --tbt-slo-ms 9", "--sweep begins at one rate, got several"),
        ("--request-rate 0", "--request-rate must be above 0, got [0.0]"),
        ("--concurrency 0", "--concurrency must be above 0, got [0]"),
        ("--concurrency x", "invalid list of int value: 'x'"),
        ("--tbt-slo-ms -1", "goals must be above 0, got Goals(ttft_slo_s=None, tbt_slo_s=-0.001"),
        ("--lengths chats", "conversations need the chat API"),
        ("--chat --prompts ids", "prompts of chats are text, got --prompts ids: leave it out."),
        ("--vocab-size 10", "--vocab-size must be above 16, got 10"),
        ("--timeout-s 0", "--timeout-s must be above 0"),
        ("--granularity 2", "--granularity must be above 0 and at most 1, got 2.0"),
        ("--extra-body [", "--extra-body must be JSON, got '['"),
        ("--extra-body []", "--extra-body must be a JSON object, got '[]'"),
        ("--url ftp://x", "a server's URL must be like http://127.0.0.1:8000, got 'ftp://x': correct it."),
        ("--url http://x:99999", "a server's URL must be like"),
        ("--url http://127.0.0.1:1", "a server must answer at http://127.0.0.1:1, got no connection ("),
        ("--out /nowhere/x.json", "the folder of --out must exist, got /nowhere: make it first."),
        ("--arrivals gamma", "--arrivals and --gap-variation are about a rate"),
    ],
)
def test_a_users_error_is_one_line(words: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *words.split()]) == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"key": "secret"}, "got HTTP 401: the API key must be right: pass --model"),
        ({"refuses": {"ignore_eos"}}, "got HTTP 400: unknown field ignore_eos: correct --url or --model, or say less"),
        ({"statuses": [503] * 3}, "got HTTP 503: status 503: wait until it is ready."),
        ({"fault": "json"}, "an answer must be text/event-stream, got application/json"),
    ],
)
def test_a_server_that_can_not_be_measured_is_told(
    server: Any, change: dict[str, Any], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vars(server).update(change)
    assert main(["bench", "serve", "--url", server.url]) == 2
    assert text in capsys.readouterr().err


def test_the_key_comes_from_the_command_line_or_the_environment(
    server: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "secret"
    assert bench(f"{SMALL} --api-key secret")["trials"][0]["num_completed"] == 4
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert "secret" not in json.dumps(bench(SMALL))
    monkeypatch.setenv("SARATHI_JAX_API_KEY", "wrong")
    bench_code = main(["bench", "serve", "--url", server.url])
    assert bench_code == 2
