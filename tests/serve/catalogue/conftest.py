"""What the catalogue's groups share: ways to ask, the judge of an answer, streams that run beside, and the check that nothing was harmed.

A case is (row, what is sent, what has to come): "200", or a status, a code and a param, "-" for null.
"""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPResponse
from typing import Any

import httpx2
import pytest

NUM_NEIGHBOURS = 8
NUM_NEIGHBOUR_TOKENS = 80
TYPES = {
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
# What must never be told: addresses, folders of this machine, lines of code.
INTERNALS = re.compile(r"0x[0-9a-f]{6,}|/(home|root|usr|tmp|work|proc)/|Traceback|\.py\b")
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BASES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "demo", "prompt": "12+30=", "max_tokens": 4},
    CHAT: {"model": "demo", "messages": [{"role": "user", "content": "12+30="}], "max_tokens": 4},
}


def pytest_make_parametrize_id(val: Any, argname: str) -> str | None:
    """A case's name begins with its row. Files of other folders are asked about too, once this one is known."""
    return f"{val[0]} {ascii(val[1])[:48]}" if argname == "case" and type(val) is tuple else None


class Wire:
    """A connection of which every byte is ours."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20.0)

    def send(self, *parts: bytes) -> bool:
        """Returns: whether the server still took it."""
        try:
            for part in parts:
                self.socket.sendall(part)
        except OSError:
            return False
        return True

    def request(self, path: str, body: Any = None, *, headers: tuple[str, ...] = (), method: str = "POST") -> None:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        self.send("\r\n".join([*lines, "", ""]).encode() + data)

    def answer(self) -> httpx2.Response:
        """The next answer, whole."""
        response = HTTPResponse(self.socket)
        response.begin()
        return httpx2.Response(response.status, headers=response.getheaders(), content=response.read())

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        data = bytearray()
        while True:
            try:
                part = self.socket.recv(65536)
            except ConnectionError:
                return bytes(data)
            if not part:
                return bytes(data)
            data += part

    def close(self, *, resets: bool = False) -> None:
        """resets: with a RST in place of a FIN."""
        if resets:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


@pytest.fixture
def wires() -> Iterator[Callable[[Any], Wire]]:
    opened: list[Wire] = []

    def connect(server: Any) -> Wire:
        opened.append(Wire(server.port))
        return opened[-1]

    yield connect
    for wire in opened:
        wire.close()


@pytest.fixture(scope="session")
def judge() -> Callable[[httpx2.Response, str], dict[str, Any]]:
    return judged


def judged(answer: httpx2.Response, expected: str) -> dict[str, Any]:
    """Fails unless the answer is exactly what it has to be. Returns: its body."""
    status, _, rest = expected.partition(" ")
    assert answer.status_code == int(status), answer.text[:500]
    if status == "200":
        return answer.json()
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    code, _, param = rest.partition(" ")
    assert error["type"] == TYPES.get(int(status), "invalid_request_error")
    assert error["code"] == (None if code == "-" else code), error
    if param:
        assert error["param"] == (None if param == "-" else param), error
    assert 0 < len(error["message"]) <= 500
    assert not INTERNALS.search(answer.text), answer.text
    if status in ("429", "503"):
        assert int(answer.headers["retry-after"]) >= 1
    return body


@pytest.fixture(scope="session")
def ask() -> Callable[..., httpx2.Response]:
    return asked


def asked(server: Any, path: str, changes: Any) -> httpx2.Response:
    """changes: of a good body, by field, `...` leaving a field out; or bytes in place of a body."""
    if isinstance(changes, bytes):
        return server.http.post(server.url + path, content=changes, headers={"Content-Type": "application/json"})
    body = {name: value for name, value in {**BASES[path], **changes}.items() if value is not ...}
    data = json.dumps(body).encode()  # httpx2 refuses to send NaN
    return server.http.post(server.url + path, content=data, headers={"Content-Type": "application/json"})


@contextmanager
def neighbours_of(server: Any) -> Iterator[None]:
    """Streams that run on and on meanwhile, and have to bring the text of a quiet run each time."""
    bodies = [
        {"model": "demo", "prompt": f"story {place}", "max_tokens": NUM_NEIGHBOUR_TOKENS, "seed": place}
        | {"temperature": 1.0, "ignore_eos": True}
        for place in range(NUM_NEIGHBOURS)
    ]
    expected = [server.complete(**body)["choices"][0]["text"] for body in bodies]
    texts: list[list[str]] = [[] for _ in bodies]
    is_over = threading.Event()

    def run(place: int) -> None:
        while not is_over.is_set():
            events = server.stream(COMPLETIONS, bodies[place])
            texts[place].append("".join(event["choices"][0]["text"] for event in events))

    threads = [threading.Thread(target=run, args=(place,)) for place in range(NUM_NEIGHBOURS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(60)
    for found, text in zip(texts, expected, strict=True):
        assert found
        assert set(found) == {text}


@pytest.fixture(scope="session")
def neighbours() -> Callable[[Any], AbstractContextManager[None]]:
    return neighbours_of


def wait_until(is_true: Callable[[], bool], limit_s: float = 20.0) -> float:
    """Returns: how long it took."""
    start_s = time.perf_counter()
    while not is_true():
        assert time.perf_counter() - start_s < limit_s, "it has not come true"
        time.sleep(0.005)
    return time.perf_counter() - start_s


@pytest.fixture(scope="session")
def eventually() -> Callable[..., float]:
    return wait_until


def check_well(server: Any) -> None:
    """The server is as healthy as before: nothing runs, no page is held, and it serves."""
    wait_until(lambda: server.get("/server_info").json()["num_open_requests"] == 0)
    wait_until(lambda: has_all_pages(server))
    assert server.get("/health").status_code == 200
    assert server.complete(max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3


def has_all_pages(server: Any) -> bool:
    """An engine tells of its pages when it was up for a moment."""
    pages = server.get("/server_info").json().get("kv_pages")
    return pages is not None and pages["free"] + pages["cached"] == server.front.facts.limits.num_pages


@pytest.fixture(scope="session")
def well() -> Callable[[Any], None]:
    return check_well


@pytest.fixture
def unharmed(request: pytest.FixtureRequest, server: Any) -> Iterator[None]:
    """For tests of the module's shared server: after the last case of each test."""
    yield
    items, node = request.session.items, request.node
    following = items[items.index(node) + 1 :][:1]
    if [(each.path, getattr(each, "originalname", "")) for each in following] != [(node.path, node.originalname)]:
        check_well(server)
