"""Group I of the catalogue: more than there is room for."""

import json
import logging
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from sarathi_jax.serve.limited_body import NUM_LARGEST_BODIES

COMPLETIONS = "/v1/completions"
NUM_SLOTS, NUM_QUEUED = 4, 4
# 200 ms for a refusal and 250 ms for a probe, on a machine of its own.
REFUSAL_LIMIT_S = 2.0
PROBE_LIMIT_S = 2.0


@pytest.fixture(scope="module")
def server(sharing: Any) -> Any:
    limits = {"max_queued_requests": NUM_QUEUED, "request_timeout_s": 30.0}
    return sharing(engine={"step_s": 0.004, "max_num_seqs": NUM_SLOTS}, **limits)


def body(place: int, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": f"ask {place}", "max_tokens": 40, "ignore_eos": True, **fields}


def timed(server: Any, place: int, **headers: str) -> tuple[int, httpx2.Response, float]:
    start_s = time.perf_counter()
    answer = server.post(COMPLETIONS, body(place), **headers)
    return place, answer, time.perf_counter() - start_s


def test_ten_times_what_fits(server: Any, judge: Any, well: Any) -> None:
    """B-I01: refused at once and honestly, or answered rightly; nothing in between."""
    num = 10 * (NUM_SLOTS + NUM_QUEUED)
    with ThreadPoolExecutor(num) as pool:
        answers = list(pool.map(lambda place: timed(server, place), range(num)))
    refusals_s = []
    for place, answer, seconds in answers:
        if answer.status_code == 200:
            quiet = server.complete(**body(place))
            assert answer.json()["choices"][0]["text"] == quiet["choices"][0]["text"]
        else:
            judge(answer, "503 server_overloaded -")
            assert int(answer.headers["retry-after"]) <= 60
            refusals_s.append(seconds)
    assert NUM_SLOTS + NUM_QUEUED <= num - len(refusals_s) < num
    assert statistics.median(refusals_s) < REFUSAL_LIMIT_S
    well(server)


def test_more_to_read_than_may_wait(serving: Any, judge: Any, well: Any) -> None:
    """B-I01, F05: prompts count, too."""
    server = serving(engine={"step_s": 0.05, "max_num_seqs": 1}, max_queued_tokens=3000)
    with ThreadPoolExecutor(8) as pool:
        bodies = [{"model": "demo", "prompt": [place] * 1000, "max_tokens": 2} for place in range(10, 18)]
        answers = list(pool.map(lambda each: server.post(COMPLETIONS, each), bodies))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    for answer in answers:
        judge(answer, "200" if answer.status_code == 200 else "503 server_overloaded -")
    well(server)


def test_a_key_that_floods_leaves_room_for_another(serving: Any, judge: Any, well: Any) -> None:
    """B-I02"""
    server = serving(engine={"step_s": 0.004}, api_key=("flood", "calm"), max_requests_per_key=4)
    flood, calm = {"Authorization": "Bearer flood"}, {"Authorization": "Bearer calm"}
    with ThreadPoolExecutor(32) as pool:
        flooding = [pool.submit(timed, server, place, **flood) for place in range(32)]
        others = [timed(server, 100 + place, **calm)[1] for place in range(3)]
        answers = [each.result()[1] for each in flooding]
    assert [answer.status_code for answer in others] == [200] * 3
    for answer in answers:
        judge(answer, "200" if answer.status_code == 200 else "429 rate_limit_exceeded -")
    assert {answer.status_code for answer in answers} == {200, 429}
    server.http.headers.update(calm)
    well(server)


TOO_SHORT: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
    ("B-I03", {"deadline_ms": 0.001}, {}, "504 deadline_exceeded -"),
    ("B-I03", {"deadline_ms": 60}, {}, "504 deadline_exceeded -"),
    ("B-I03", {}, {"X-Request-Timeout-Ms": "1"}, "504 deadline_exceeded -"),
    ("B-I03", {"deadline_ms": 1e6}, {"X-Request-Timeout-Ms": "60"}, "504 deadline_exceeded -"),
    ("B-I03", {}, {"X-Request-Timeout-Ms": "0"}, "400 invalid_value"),
    ("B-I03", {}, {"X-Request-Timeout-Ms": "-5"}, "400 invalid_value"),
    ("B-I03", {}, {"X-Request-Timeout-Ms": "1.5"}, "400 invalid_value"),
    ("B-I03", {}, {"X-Request-Timeout-Ms": "soon"}, "400 invalid_value"),
    ("B-I03", {"deadline_ms": 0}, {}, "400 decimal_below_min_value deadline_ms"),
    ("B-I03", {"deadline_ms": "5"}, {}, "400 invalid_type deadline_ms"),
    ("B-I03", {"deadline_ms": 1e300}, {"X-Request-Timeout-Ms": "9" * 300}, "200"),
]


@pytest.mark.parametrize("case", TOO_SHORT)
def test_deadlines(server: Any, judge: Any, well: Any, case: Any) -> None:
    judge(server.post(COMPLETIONS, body(1, max_tokens=30) | case[1], **case[2]), case[3])
    well(server)


def test_a_deadline_in_the_middle_of_a_stream_is_an_event(server: Any, wires: Any, well: Any) -> None:
    """B-I03"""
    wire = wires(server)
    wire.request(COMPLETIONS, body(1, max_tokens=1000, deadline_ms=300, stream=True))
    text = wire.answer().text
    assert '"deadline_exceeded"' in text.rstrip().split("\n\n")[-1]
    assert "[DONE]" not in text
    well(server)


def test_probes_are_quick_in_a_burst(server: Any, well: Any) -> None:
    """B-I04: a probe is never wrong, and hardly slower."""
    is_over = threading.Event()
    probes: list[tuple[int, float]] = []

    def probe() -> None:
        with httpx2.Client() as http:
            while not is_over.is_set():
                start_s = time.perf_counter()
                probes.append((http.get(f"{server.url}/health").status_code, time.perf_counter() - start_s))
                time.sleep(0.05)

    probing = threading.Thread(target=probe)
    probing.start()
    with ThreadPoolExecutor(32) as pool:
        statuses = [each[1].status_code for each in pool.map(lambda place: timed(server, place), range(300))]
    is_over.set()
    probing.join(30)
    assert set(statuses) == {200, 503}
    assert {status for status, _ in probes} == {200}
    assert statistics.median(seconds for _, seconds in probes) < PROBE_LIMIT_S
    well(server)


def unfinished(wire: Any, num_bytes: int, of_bytes: int) -> None:
    """The head and the beginning of a body."""
    head = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    wire.send("\r\n".join([*head, f"Content-Length: {of_bytes}", "", ""]).encode() + b"[" * num_bytes)


def test_a_body_that_comes_slowly_takes_nobodys_place(server: Any, wires: Any, well: Any) -> None:
    """G-06: more of them than may be served or wait."""
    slow = [wires(server) for _ in range(4 * (NUM_SLOTS + NUM_QUEUED))]
    for wire in slow:
        unfinished(wire, 10, 100)
    assert [timed(server, place)[1].status_code for place in range(3)] == [200] * 3
    for wire in slow:
        wire.close()
    well(server)


def test_bodies_that_come_slowly_have_a_limit_together(serving: Any, wires: Any, judge: Any, well: Any) -> None:
    server = serving(max_body_bytes=5000)
    slow = [wires(server) for _ in range(NUM_LARGEST_BODIES)]
    for wire in slow:
        unfinished(wire, 4900, 5000)
    time.sleep(0.2)
    one_more = wires(server)
    unfinished(one_more, 4900, 5000)
    judge(one_more.answer(), "503 server_overloaded -")
    assert timed(server, 0)[1].status_code == 200  # a small one
    for wire in slow:
        wire.close()
    time.sleep(0.2)
    for _ in range(2 * NUM_LARGEST_BODIES):  # what was read, or refused, is given back
        judge(
            server.post(COMPLETIONS, {"model": "demo", "prompt": "x" * 4000, "max_tokens": 1}),
            "400 context_length_exceeded prompt",
        )
    well(server)


def test_a_large_body_takes_no_room_once_its_request_is_let_in(serving: Any, wires: Any, well: Any) -> None:
    server = serving(max_body_bytes=5000, engine={"step_s": 0.01, "max_num_seqs": 2 * NUM_LARGEST_BODIES})
    padded = {"model": "demo", "prompt": "a", "max_tokens": 100, "ignore_eos": True, "user": "x" * 256}
    streams = [wires(server) for _ in range(NUM_LARGEST_BODIES + 4)]
    for wire in streams:
        content = json.dumps({**padded, "stream": True}).ljust(4900).encode()
        head = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        wire.send("\r\n".join([*head, f"Content-Length: {len(content)}", "", ""]).encode() + content)
    assert {wire.answer().status_code for wire in streams} == {200}
    well(server)


def test_no_secret_comes_out(serving: Any, caplog: pytest.LogCaptureFixture, well: Any) -> None:
    """C30, G-57: what was asked, answered or sent as a key is in no log, no error, no metric and no figure."""
    said, prompt, key, argument = "canary-answer", "canary-prompt", "canary-key", "canary-argument"
    server = serving(api_key=(key,), access_log=True, engine={"says": said})
    call = {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": f'{{"a": "{argument}"}}'}}
    spoken = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        told.append(server.post(COMPLETIONS, {"model": "demo", "prompt": prompt}).text)
        server.http.headers["Authorization"] = f"Bearer {key}"
        assert said in server.post(COMPLETIONS, {"model": "demo", "prompt": prompt, "max_tokens": 50}).text
        wrong: list[dict[str, Any]] = [
            {"model": "demo", "messages": spoken, "max_tokens": 5, "n": 0},
            {"model": "demo", "messages": spoken, "max_tokens": 10**6},
            {"model": "demo", "messages": [*spoken, {"role": "tool", "content": argument, "tool_call_id": "call_1"}]},
            {"model": "demo", "messages": spoken * 1000},
        ]
        told += [server.post("/v1/chat/completions", each).text for each in wrong]
        told += [server.get(path).text for path in ("/server_info", "/metrics", "/v1/models", "/openapi.json")]
        well(server)
    # What this client itself logs is not the server's.
    told += [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert len(told) > 12
    assert not [each for each in told if "canary" in each]
