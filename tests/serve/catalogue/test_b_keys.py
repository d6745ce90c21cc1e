"""Group B of the catalogue: keys. `/` and `/static/` are public beside the three probes: the page asks for the key itself."""

import logging
import math
import random
import statistics
import time
from typing import Any

import pytest

from sarathi_jax.serve.app import make_app
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.gate import Gate, Headers, digest

KEY = "canary-key-53c1"
SECOND = "canary-key-0002"
RIGHT = f"Bearer {KEY}"
PUBLIC = {"/health", "/live", "/ready", "/", "/static/{name:path}"}
pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture(scope="module")
def server(sharing: Any) -> Any:
    started = sharing(api_key=(KEY, SECOND), access_log=True)
    started.http.headers["Authorization"] = RIGHT
    return started


def flipped(place: int) -> str:
    return KEY[:place] + chr(ord(KEY[place]) ^ 1) + KEY[place + 1 :]


CASES: list[tuple[str, list[str]]] = [
    ("B-B01", []),
    ("B-B01", [""]),
    ("B-B01", ["Bearer"]),
    ("B-B01", ["Bearer "]),
    ("B-B01", [KEY]),
    ("B-B01", [f"Basic {KEY}"]),
    ("B-B01", ["Basic OmNhbmFyeS1rZXktNTNjMQ=="]),
    ("B-B01", [RIGHT, RIGHT]),
    ("B-B01", [RIGHT, "Bearer x"]),
    ("B-B01", ["Bearer \xe9"]),
    ("B-B01", [f"Bearer {KEY}, {RIGHT}"]),
    ("B-B02", [f"Bearer {KEY[:-1]}"]),
    ("B-B02", [f"Bearer {KEY}x"]),
    ("B-B02", [f"Bearer x{KEY}"]),
    ("B-B02", [f"Bearer {KEY.upper()}"]),
    ("B-B02", [f"Bearer second {SECOND}"]),
    *(("B-B02", [f"Bearer {flipped(place)}"]) for place in range(len(KEY))),
]


@pytest.mark.parametrize("case", CASES)
def test_without_the_key(server: Any, wires: Any, judge: Any, case: Any) -> None:
    wire = wires(server)
    lines = [f"Authorization: {value}".encode("latin-1") for value in case[1]]
    wire.send(b"\r\n".join([b"GET /v1/models HTTP/1.1", b"Host: localhost", *lines, b"", b""]))
    answer = wire.answer()
    judge(answer, "401 invalid_api_key -")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY}", f"Bearer {SECOND}"])
def test_with_a_key(server: Any, key: str) -> None:
    assert server.get("/v1/models", Authorization=key).status_code == 200


def routes(server: Any) -> list[tuple[str, str]]:
    gate: Any = make_app(server.front, {})
    found: list[tuple[str, str]] = []
    waiting = list(gate._app.routes)
    while waiting:
        route = waiting.pop()
        waiting += getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", [])
        found += [(method, route.path) for method in getattr(route, "methods", None) or ()]
    return found


def test_every_route_wants_the_key(server: Any, judge: Any) -> None:
    """B-B03: whatever its path, dressed up or not, nothing but the probes and the page is answered without one."""
    known = routes(server)
    paths = {path for _, path in known}
    assert {"/v1/completions", "/v1/chat/completions", "/openapi.json", "/tokenize", "/metrics"} <= paths
    assert paths >= PUBLIC
    for method, path in known:
        filled = path.replace("{name:path}", "demo")
        for each in (filled, filled + "?a=/health", filled + "#/health", f"{filled}/"):
            answer = server.http.request(method, server.url + each, headers={"Authorization": ""})
            if path in PUBLIC and answer.status_code != 401:
                continue
            if method != "HEAD":
                judge(answer, "401 invalid_api_key -")
            assert answer.status_code == 401


DRESSED = [
    "//v1/models",
    "/health/../v1/models",
    "/static/../v1/models",
    "/static/%2e%2e/v1/models",
    "/static/..%2fv1%2fmodels",
    "/health%2f..%2fv1/models",
    "/./health/../v1/models",
    "/v1/models;/health",
    "/HEALTH",
    "/health//",
    "/live/x",
    "http://localhost/v1/models",
    "http://localhost/health/../v1/models",
    "/v1/models%00/health",
    "/%76%31/models",
    "*",
]


@pytest.mark.parametrize("path", DRESSED)
@pytest.mark.parametrize("host", ["localhost", "health", "localhost:1", "127.0.0.1"])
def test_paths_dressed_up(server: Any, wires: Any, path: str, host: str) -> None:
    """G-51: no route is reached by another name for it, and the Host header changes nothing."""
    wire = wires(server)
    wire.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = wire.answer()
    assert answer.status_code in (400, 401, 403, 404), answer.text
    assert "demo" not in answer.text


@pytest.mark.parametrize("host", ["evil/?", "x/#", "a b", "/health", "x?/health"])
def test_hosts_that_are_none_let_nobody_in(server: Any, wires: Any, judge: Any, host: str) -> None:
    """B-A08"""
    for key in ("", f"Authorization: {RIGHT}\r\n"):
        wire = wires(server)
        wire.send(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n{key}\r\n".encode())
        judge(wire.answer(), "400 invalid_value host")


def test_a_key_in_the_address_is_none_and_not_logged(server: Any, judge: Any, caplog: pytest.LogCaptureFixture) -> None:
    """B-B04"""
    with caplog.at_level(logging.DEBUG):
        answer = server.get(f"/v1/models?api_key={KEY}&key={KEY}", Authorization="")
        time.sleep(0.02)
    judge(answer, "401 invalid_api_key -")
    assert "/v1/models" in caplog.text
    assert KEY not in "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("sarathi"))


async def answer_nothing(*_: Any) -> None:
    pass


@pytest.mark.nightly
def test_comparing_takes_as_long_whatever_is_right_of_a_key() -> None:
    """B-B02, G-56: Welch's t of the time for a key that is wrong in its first or in its last character."""
    gate = Gate(answer_nothing, ServeConfig(), {digest(KEY): "key"}, lambda *_: None)
    sent = [[(b"authorization", f"Bearer {flipped(place)}".encode())] for place in (0, len(KEY) - 1)]
    times_s: list[list[float]] = [[], []]
    chooser = random.Random(0)
    for _ in range(200_000):
        which = chooser.randrange(2)
        headers = Headers(sent[which])
        start_s = time.perf_counter()
        try:
            gate._name_of_key(headers)
        except ApiError:
            times_s[which].append(time.perf_counter() - start_s)
    # The slowest tenth is the machine's.
    kept = [sorted(each)[: len(each) * 9 // 10] for each in times_s]
    spread = math.sqrt(sum(statistics.variance(each) / len(each) for each in kept))
    assert abs(statistics.fmean(kept[0]) - statistics.fmean(kept[1])) / spread < 4.5
