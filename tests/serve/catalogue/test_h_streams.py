"""Group H of the catalogue: streams, clients that leave, and clients that do not read.

B-H03: a client that closes its side and reads on gets a whole stream. An answer that is no stream is given up: nothing can be sent to find out whether such a client
is still there, and most have gone. B-H07: requests are cancelled by leaving, and in no
other way: there is no route that takes an id.
"""

import json
import logging
import os
import signal
import socket
import time
from typing import Any

import pytest

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
# 250 ms from a client's leaving to its pages' being free, on a machine of its own.
LEFT_LIMIT_S = 2.0
SLOW_READER_S = 0.8
ENGINE = {"step_s": 0.01, "max_num_seqs": 2, "token_budget": 16, "num_pages": 36, "max_model_len": 570}
pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture(scope="module")
def server(sharing: Any) -> Any:
    return sharing(engine=ENGINE)


def state(server: Any) -> tuple[int, int, int]:
    """Open requests, waiting ones, KV pages in use."""
    info = server.get("/server_info").json()
    return info["num_open_requests"], info.get("num_waiting", 0), info.get("kv_pages", {}).get("used", 0)


def body(num_prompt_tokens: int, max_tokens: int, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": [7] * num_prompt_tokens, "max_tokens": max_tokens, "ignore_eos": True, **fields}


def begin(phase: str, server: Any, wires: Any, eventually: Any, **fields: Any) -> list[Any]:
    """Connections of requests of which the last one is in that phase now."""

    def send(num_prompt_tokens: int, max_tokens: int) -> Any:
        wire = wires(server)
        salt = f"{phase}-{num_prompt_tokens}-{time.perf_counter()}"[:64]  # nothing comes from the cache
        wire.request(COMPLETIONS, body(num_prompt_tokens, max_tokens, cache_salt=salt, **fields))
        return wire

    if phase == "queued":
        opened = [send(20, 120), send(20, 120), send(20, 20)]
        eventually(lambda: state(server)[:2] == (3, 1))
    elif phase == "prefill":
        opened = [send(500, 20)]
        eventually(lambda: state(server)[0] == 1)
        time.sleep(0.05)
    elif phase == "decode":
        opened = [send(16, 500)]
        eventually(lambda: state(server)[2] > 1)
    elif phase == "preempted":
        opened = [send(250, 250), send(250, 250)]
        eventually(lambda: state(server)[:2] == (2, 1))
    else:
        opened = [send(16, 4)]
        time.sleep(0.06)
    return opened


@pytest.mark.parametrize("resets", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode", "preempted", "tail"])
def test_a_client_that_leaves_leaves_nothing_behind(
    server: Any, wires: Any, eventually: Any, phase: str, is_stream: bool, resets: bool
) -> None:
    """B-H01: also if it leaves in the same moment as others."""
    opened = begin(phase, server, wires, eventually, stream=is_stream)
    for wire in opened:
        wire.close(resets=resets)
    eventually(lambda: state(server) == (0, 0, 0), LEFT_LIMIT_S)


@pytest.mark.parametrize("phase", ["queued", "preempted"])
def test_a_client_that_leaves_takes_no_other_with_it(server: Any, wires: Any, eventually: Any, phase: str) -> None:
    """B-H01: those that run go on."""
    (expected,) = [server.complete(**body(20, 120))["choices"][0]["text"]]
    *others, leaving = begin(phase, server, wires, eventually)
    leaving.close()
    eventually(lambda: state(server)[:2] == (len(others), 0))
    for wire in others:
        answer = wire.answer()
        assert answer.status_code == 200
        assert phase != "queued" or answer.json()["choices"][0]["text"] == expected


PARTS: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("half a head", b"POST /v1/completions HTTP/1.1\r\nHo"),
    (
        "no body",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n",
    ),
    (
        "half a body",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ),
]


@pytest.mark.parametrize("resets", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("case", PARTS)
def test_a_client_that_leaves_before_it_has_asked(
    server: Any, wires: Any, eventually: Any, caplog: pytest.LogCaptureFixture, case: Any, resets: bool
) -> None:
    """B-H01, phase 0: nothing is left, and nothing is worth a line of the log."""
    wire = wires(server)
    with caplog.at_level(logging.WARNING):
        wire.send(case[1])
        time.sleep(0.05)
        wire.close(resets=resets)
        time.sleep(0.05)
        eventually(lambda: state(server) == (0, 0, 0), LEFT_LIMIT_S)
    assert caplog.records == []


@pytest.mark.parametrize("phase", ["at once", "queued", "prefill", "decode"])
def test_a_client_that_closes_its_side_reads_its_stream_to_the_end(
    server: Any, wires: Any, eventually: Any, phase: str
) -> None:
    """B-H03"""
    before = [] if phase == "at once" else begin(phase, server, wires, eventually, stream=True)
    wire = before[-1] if before else wires(server)
    if not before:
        wire.request(COMPLETIONS, body(40, 100, stream=True))
    wire.socket.shutdown(socket.SHUT_WR)
    rest = wire.rest()
    assert b"data: [DONE]" in rest
    assert rest.endswith(b"0\r\n\r\n")
    for other in before[:-1]:
        other.close(resets=True)
    eventually(lambda: state(server) == (0, 0, 0), LEFT_LIMIT_S)


def test_a_client_that_closes_its_side_has_left_what_is_no_stream(server: Any, wires: Any, eventually: Any) -> None:
    """B-H03"""
    (wire,) = begin("decode", server, wires, eventually, stream=False)
    wire.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: state(server) == (0, 0, 0), LEFT_LIMIT_S)
    assert wire.rest() == b""


def storm(server: Any, wires: Any, num: int) -> None:
    for place in range(num):
        wire = wires(server)
        wire.request(COMPLETIONS, body(40, 100, stream=bool(place % 2)))
        wire.close(resets=True)


def test_a_storm_of_clients_that_leave(serving: Any, wires: Any, neighbours: Any, well: Any) -> None:
    """B-H04"""
    server = serving()
    with neighbours(server):
        storm(server, wires, 150)
    well(server)


@pytest.mark.nightly
def test_a_long_storm_of_clients_that_leave(serving: Any, wires: Any, neighbours: Any, well: Any) -> None:
    """B-H04"""
    server = serving()
    with neighbours(server):
        end_s = time.perf_counter() + 60.0
        while time.perf_counter() < end_s:
            storm(server, wires, 100)
    well(server)


def stalled(server: Any, **fields: Any) -> socket.socket:
    """A client that asks for much and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    data = json.dumps(body(4, 2000, n=8, logprobs=5, stream=True, **fields)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


@pytest.mark.parametrize("reads", [0, 10])
def test_clients_that_do_not_read_are_cut(
    serving: Any, neighbours: Any, eventually: Any, well: Any, caplog: pytest.LogCaptureFixture, reads: int
) -> None:
    """B-H02, G-05: nobody waits for them, and the server keeps little for them. reads: bytes now and then."""
    server = serving(slow_reader_timeout_s=SLOW_READER_S, engine={"max_num_seqs": 64})
    with neighbours(server):
        eventually(lambda: state(server)[0] == 8)
        connections = [stalled(server) for _ in range(3)]
        eventually(lambda: sum(live.spec.params.n == 8 for live in server.front.client.live) == 3)
        start_s = time.perf_counter()
        while any(live.spec.params.n == 8 for live in server.front.client.live):
            assert time.perf_counter() - start_s < 25.0, "they have not been cut"
            for connection in connections if reads else ():
                connection.recv(reads)
            time.sleep(0.05)
        assert time.perf_counter() - start_s > SLOW_READER_S / 2
    for connection in connections:
        connection.settimeout(10)
        assert b"[DONE]" not in left(connection)
        connection.close()
    well(server)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def left(connection: socket.socket) -> bytes:
    """What a client finds that reads at last: at most what buffers hold."""
    data = bytearray()
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionError:
        pass
    assert len(data) < 2**20
    return bytes(data)


def test_an_error_after_the_first_token_is_the_last_event(serving: Any, wires: Any, eventually: Any) -> None:
    """B-H05: told as an event, with no [DONE] behind it, and the stream ends as a stream does."""
    server = serving(engine={"step_s": 0.01}, max_restarts=0)
    wire = wires(server)
    wire.request(COMPLETIONS, body(4, 2000, stream=True))
    eventually(lambda: state(server)[2] > 1)
    os.kill(server.engine_pid, signal.SIGKILL)
    answer = wire.answer()  # fails unless the last chunk came
    events = [line for line in answer.text.split("\n\n") if line]
    assert "[DONE]" not in answer.text
    assert len(events) > 1
    assert json.loads(events[0].removeprefix("data: "))["choices"]
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("service_unavailable_error", "engine_unavailable")


SAID = "naïve 日本語 \U0001f642\U0001f680\U0001f469‍\U0001f469‍\U0001f467 ع ﷽ end"


def test_characters_come_whole(serving: Any, well: Any) -> None:
    """B-H06: the demo's tokens are bytes for all of these; no event ends within one."""
    server = serving(engine={"says": SAID})
    for path, field in ((COMPLETIONS, "text"), (CHAT, "delta")):
        asked = {"prompt": "a"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
        events = server.stream(path, {"model": "demo", "max_tokens": 300, **asked})
        parts = [choice[field] for event in events for choice in event["choices"]]
        texts = [part.get("content") or "" if isinstance(part, dict) else part for part in parts]
        assert "".join(texts) == SAID
        assert len(texts) > 10
        assert not any("\ufffd" in text for text in texts)
    assert server.complete(max_tokens=300)["choices"][0]["text"] == SAID
    well(server)


def test_nothing_is_cancelled_by_its_name(server: Any, wires: Any, judge: Any, eventually: Any) -> None:
    """B-H07"""
    wire = wires(server)
    wire.request(COMPLETIONS, body(4, 30, request_id="mine"))
    eventually(lambda: state(server)[0] == 1)
    for name in ("mine", "cmpl-mine", "cmpl-", "m"):
        judge(server.post(f"/v1/completions/{name}/cancel", {}), "404 - -")
        judge(server.http.request("DELETE", f"{server.url}/v1/completions/{name}"), "404 - -")
    assert wire.answer().json()["usage"]["completion_tokens"] == 30
