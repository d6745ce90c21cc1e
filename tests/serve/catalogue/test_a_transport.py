"""Group A of the catalogue: what comes before JSON."""

import json
import logging
import re
import time
from typing import Any

import pytest

COMPLETIONS = "/v1/completions"
HEAD_LIMIT_S = 1.0
MAX_BODY_BYTES = 2**20
GOOD = json.dumps({"model": "demo", "prompt": "12+30=", "max_tokens": 2}).encode()
SENT = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture(scope="module")
def server(sharing: Any) -> Any:
    limits = {"header_timeout_s": HEAD_LIMIT_S, "body_timeout_s": 1.0, "max_body_bytes": MAX_BODY_BYTES}
    return sharing(access_log=True, **limits)


def whole(head: bytes, body: bytes = GOOD) -> bytes:
    return SENT + head + b"Content-Length: %d\r\n\r\n" % len(body) + body


CASES: list[tuple[str, bytes, str]] = [
    (
        "B-A01",
        b"GET /version HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70 * 2**10 + b"\r\n\r\n",
        "431 header_too_large -",
    ),
    ("B-A01", b"GET /version HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**20, "431 header_too_large -"),
    ("B-A01", b"GET /" + b"a" * 70 * 2**10 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", "431 header_too_large -"),
    ("B-A01", b"GET /version HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 101 + b"\r\n", "431 header_too_large -"),
    ("B-A02", SENT + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), "413 request_too_large -"),
    ("B-A02", SENT + b"Content-Length: 99999999999999999\r\n\r\n", "413 request_too_large -"),
    ("B-A02", SENT + b"Content-Length: 999999999999999999999999\r\n\r\n", "400 invalid_value -"),
    ("B-A02", SENT + b"Content-Length: -1\r\n\r\n", "400 invalid_value -"),
    ("B-A03", SENT + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 70_000, "413 request_too_large -"),
    (
        "B-A03",
        SENT + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b" " * 65535 + b"\r\n",
        "408 request_timeout -",
    ),
    (
        "B-A03",
        SENT + b"Transfer-Encoding: chunked\r\n\r\n" + (b"ffff\r\n" + b" " * 65535 + b"\r\n") * 20,
        "413 request_too_large -",
    ),
    ("B-A03", SENT + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n", "400 invalid_json -"),
    ("B-A04", SENT + b"Content-Length: 100\r\n\r\n{", "408 request_timeout -"),
    ("B-A05", whole(b"Transfer-Encoding: chunked\r\n"), "400 invalid_value -"),
    ("B-A05", whole(b"Content-Length: 5\r\n"), "400 invalid_value -"),
    ("B-A06", whole(b"Content-Encoding: gzip\r\n"), "415 unsupported_media_type -"),
    ("B-A06", whole(b"Content-Encoding: br, identity\r\n"), "415 unsupported_media_type -"),
    ("B-A07", whole(b"").replace(b"application/json", b"text/plain"), "415 unsupported_media_type -"),
    ("B-A07", whole(b"").replace(b"Content-Type: application/json\r\n", b""), "415 unsupported_media_type -"),
    ("B-A07", whole(b"").replace(b"application/json", b"application/json; charset=utf-8"), "200"),
    *(
        ("B-A08", b"GET /v1/models HTTP/1.1\r\n" + host + b"\r\n", "400 invalid_value host")
        for host in (
            b"Host: evil/?\r\n",
            b"Host: x/#\r\n",
            b"Host: a b\r\n",
            b"Host: a@b\r\n",
            b"Host: \xff\r\n",
            b"Host:\r\n",
            b"",
            b"Host: a\r\nHost: b\r\n",
        )
    ),
    ("B-A08", b"GET /v1/models HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", "200"),
    ("B-A08", b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403 invalid_value host"),
    ("B-A09", whole(b"").replace(b"/v1/completions", b"/v1/nothing"), "404 - -"),
    ("B-A09", b"GET /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", "405 method_not_supported -"),
    ("B-A09", whole(b"").replace(b"/v1/completions", b"/v1/completions/"), "404 - -"),
    ("B-A09", b"GET /health/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "404 - -"),
    ("B-A09", b"DELETE /v1/models/demo HTTP/1.1\r\nHost: localhost\r\n\r\n", "405 method_not_supported -"),
    ("B-A09", b"GET /static/../../serve/app HTTP/1.1\r\nHost: localhost\r\n\r\n", "404 - -"),
    ("B-A09", b"GET /static/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", "404 - -"),
    (
        "B-A13",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nRange: bytes=" + b"0-0," * 15_000 + b"0-0\r\n\r\n",
        "200",
    ),
    (
        "B-A15",
        b"OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil\r\n\r\n",
        "405 method_not_supported -",
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_a_request(server: Any, wires: Any, judge: Any, case: Any) -> None:
    wire = wires(server)
    wire.send(case[1])
    answer = wire.answer()
    judge(answer, case[2])
    assert len(answer.headers.get_list("connection")) <= 1
    if answer.status_code in (400, 408, 413, 415, 431) and case[2] != "400 invalid_json -":
        assert answer.headers["connection"] == "close"
        assert wire.rest() == b""


def test_others_do_not_notice(server: Any, wires: Any, judge: Any, neighbours: Any) -> None:
    with neighbours(server):
        for _, sent, expected in CASES:
            wire = wires(server)
            wire.send(sent)
            judge(wire.answer(), expected)


def test_a_wrong_path_is_told(server: Any, judge: Any) -> None:
    """B-A09: in OpenAI's words."""
    message = judge(server.post("/v1/nothing", {}), "404 - -")["error"]["message"]
    assert message == "Invalid URL (POST /v1/nothing)"


def test_heads_that_come_drop_by_drop_are_cut(server: Any, wires: Any, judge: Any) -> None:
    """B-A04: all of them in time, and good clients are served meanwhile."""
    drips = [wires(server) for _ in range(100)]
    start_s = time.perf_counter()
    for place, wire in enumerate(drips):
        if place % 2:  # the others never say a word
            wire.send(b"GET /version HTTP/1.1\r\n")
    is_open = [True] * len(drips)
    num_good = 0
    while time.perf_counter() - start_s < HEAD_LIMIT_S + 3.0 and any(is_open[1::2]):
        for place, wire in enumerate(drips):
            if place % 2:
                is_open[place] = is_open[place] and wire.send(b"X")
        assert server.get("/version").status_code == 200
        num_good += 1
        time.sleep(0.1)
    assert not any(is_open[1::2])
    assert num_good > 1
    assert [wire.rest() for wire in drips] == [b""] * len(drips)


JUNK: list[tuple[str, bytes]] = [
    ("random", bytes(range(256)) * 8),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
    ("SMTP", b"EHLO evil\x1b[31m\r\nMAIL FROM:<a@b>\r\n"),
    ("no version", b"GET /version\r\n\r\n"),
    ("no path", b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("bytes in the path", b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("a line without a colon", b"GET / HTTP/1.1\r\nHost x\r\n\r\n"),
    ("bare CR", b"GET / HTTP/1.1\rHost: x\r\r"),
    ("a chunk's size", SENT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
]


@pytest.mark.parametrize("case", [("B-A10", *each) for each in JUNK])
def test_junk(server: Any, wires: Any, judge: Any, caplog: pytest.LogCaptureFixture, case: Any) -> None:
    """B-A10: refused, with a line of the log at most, in which nothing of it stands."""
    wire = wires(server)
    with caplog.at_level(logging.INFO):
        wire.send(case[2])
        answer = wire.rest()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")]
    assert len(lines) <= 1
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert "Traceback" not in caplog.text


def test_requests_in_one_segment_are_answered_in_their_order(server: Any, wires: Any) -> None:
    """B-A11"""
    wire = wires(server)
    ids = [f"request-{place}" for place in range(100)]
    parts = [
        f"GET /version HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {each}\r\n"
        + ("Connection: close\r\n\r\n" if each == ids[-1] else "\r\n")
        for each in ids
    ]
    wire.send("".join(parts).encode())
    answers = wire.rest()
    assert re.findall(rb"x-request-id: (\S+)", answers) == [each.encode() for each in ids]
    assert answers.count(b"HTTP/1.1 200 OK") == 100


def test_too_many_connections(
    serving: Any, wires: Any, judge: Any, neighbours: Any, eventually: Any, well: Any
) -> None:
    """B-A12: those beyond are refused at once; who is in stays in."""
    server = serving(max_connections=30)
    with neighbours(server):
        eventually(lambda: server.get("/server_info").json()["num_open_requests"] == 8)
        opened = [wires(server) for _ in range(40)]
        judge(opened[-1].answer(), "503 server_overloaded -")
        assert opened[-1].rest() == b""
    for wire in opened:
        wire.close()
    well(server)


SENT_IDS: list[tuple[str, bytes, bool]] = [
    ("B-A14", b"good-1.Z_", True),
    ("B-A14", b"a" * 64, True),
    ("B-A14", b"a" * 65, False),
    ("B-A14", b"a" * 10_000, False),
    ("B-A14", b"\x1b[31mred", False),
    ("B-A14", b"a\tb", False),
    ("B-A14", "é".encode(), False),
    ("B-A14", b"a b", False),
    ("B-A14", b"", False),
]


@pytest.mark.parametrize("case", SENT_IDS)
def test_request_ids(server: Any, wires: Any, caplog: pytest.LogCaptureFixture, case: Any) -> None:
    """B-A14: the client's name for a request comes back where it is harmless, and one of ours in its place where it is not."""
    _, sent, is_kept = case
    wire = wires(server)
    with caplog.at_level(logging.INFO, "sarathi_jax.access"):
        wire.send(
            b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: \xff7\r\nX-Request-Id: "
            + sent
            + b"\r\nConnection: close\r\n\r\n"
        )
        head = wire.rest().split(b"\r\n\r\n")[0].decode("latin-1")
        time.sleep(0.02)
    if b"\x1b" in sent:  # the parser lets no such header in
        assert head.startswith("HTTP/1.1 400 ")
        return
    (name,) = re.findall(r"x-request-id: (.*)", head)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name.strip())
    assert (name.strip().encode() == sent) is is_kept
    lines = [record.getMessage() for record in caplog.records if record.name == "sarathi_jax.access"]
    assert len(lines) == 1
    assert lines[0].isascii()
    assert lines[0].isprintable()
    assert name.strip() in lines[0]


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/models", COMPLETIONS, "/health", "/"])
def test_no_page_elsewhere_may_read_answers(server: Any, method: str, path: str) -> None:
    """B-A15"""
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = server.http.request(method, server.url + path, headers=headers)
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert method != "OPTIONS" or answer.status_code in (403, 405)
