"""An engine that dies, hangs or can't start, and what becomes of requests. The reference is the same request on a server that nothing happens to."""

import os
import signal
import threading
import time
from typing import Any

import httpx2
import pytest

from sarathi_jax.errors import ConfigError, EngineError

NUM_STREAMS = 16


def body_of(place: int) -> dict[str, Any]:
    """Long enough to be hit; every third one draws two samples, and one has a stop string."""
    return {
        "model": "demo",
        "prompt": f"story {place}: once",
        "max_tokens": 100,
        "temperature": 1.0,
        "seed": place,
        "ignore_eos": True,
        "n": 2 if place % 3 == 0 else 1,
        "presence_penalty": 0.5 if place % 2 else 0.0,
        "stop": ["zz"],
    }


def texts_of(events: list[dict[str, Any]]) -> list[str]:
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return [texts[index] for index in sorted(texts)]


def streams(server: Any, num: int = NUM_STREAMS) -> tuple[list[threading.Thread], list[list[str]]]:
    """Streams under way, and where their texts will be."""
    texts: list[list[str]] = [[] for _ in range(num)]

    def run(place: int) -> None:
        texts[place] = texts_of(server.stream("/v1/completions", body_of(place)))

    threads = [threading.Thread(target=run, args=(place,)) for place in range(num)]
    for thread in threads:
        thread.start()
    return threads, texts


def wait_until(is_true: Any, limit_s: float = 30.0) -> float:
    """Returns: how long it took."""
    start_s = time.perf_counter()
    while not is_true():
        assert time.perf_counter() - start_s < limit_s, "it has not come true"
        time.sleep(0.01)
    return time.perf_counter() - start_s


def reference(server: Any, num: int = NUM_STREAMS) -> list[list[str]]:
    answers = [server.post("/v1/completions", body_of(place)).json() for place in range(num)]
    return [[choice["text"] for choice in answer["choices"]] for answer in answers]


def test_streams_go_on_after_the_engine_is_killed(serving: Any) -> None:
    """J06: every stream brings the text of a quiet run, whenever the engine dies; nobody is left behind, and no page is lost."""
    server = serving(engine={"step_s": 0.004}, max_restarts=100)
    expected = reference(server)
    for round_ in range(3):
        pid = server.engine_pid
        threads, texts = streams(server)
        wait_until(lambda: server.front.client.num_live == NUM_STREAMS)
        time.sleep(0.05 + 0.07 * round_)
        os.kill(pid, signal.SIGKILL)
        seen_s = wait_until(lambda: server.get("/health").status_code == 503)
        assert seen_s < 1.0
        wait_until(lambda: server.get("/health").status_code == 200)
        for thread in threads:
            thread.join(60)
        assert texts == expected
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    wait_until(lambda: server.get("/server_info").json()["kv_pages"]["used"] == 0)
    assert server.get("/server_info").json()["num_engine_restarts"] == 3


def test_a_whole_answer_survives_the_engine_too(serving: Any) -> None:
    server = serving(engine={"step_s": 0.004})
    (expected,) = reference(server, 1)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(server.post("/v1/completions", body_of(0)).json()))
    asking.start()
    wait_until(lambda: server.front.client.num_live == 1)
    time.sleep(0.1)
    os.kill(server.engine_pid, signal.SIGKILL)
    asking.join(60)
    assert [choice["text"] for choice in found[0]["choices"]] == expected


def test_a_step_that_hangs_ends_the_engine_and_no_request(serving: Any) -> None:
    """J05: the step's process is killed after the limit, and another one goes on."""
    server = serving(engine={"hangs_at_step": 400}, step_timeout_s=0.5)
    (expected,) = reference(server, 1)  # fewer steps than it takes to hang
    bodies = [body_of(0)] * 3
    texts = [texts_of(server.stream("/v1/completions", body)) for body in bodies]
    assert texts == [expected] * 3
    assert server.get("/server_info").json()["num_engine_restarts"] >= 1


def test_an_engine_that_dies_too_often_ends_the_server(serving: Any) -> None:
    """J07: the requests get an error each, and the server says why it ends."""
    server = serving(engine={"dies_at_step": 3}, max_restarts=2)
    answer = server.post("/v1/completions", body_of(1))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_unavailable"
    server.join()
    assert isinstance(server.error, EngineError)
    assert "3 times" in str(server.error)


def test_a_request_that_every_engine_dies_of_is_given_up(serving: Any) -> None:
    """It gets its error, and the server goes on: the request is gone that the engine died of."""
    server = serving(engine={"dies_at_step": 4}, max_restarts=10)
    answer = server.post("/v1/completions", body_of(1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert server.get("/server_info").json()["num_engine_restarts"] == 4
    wait_until(lambda: server.get("/health").status_code == 200)
    assert server.complete(max_tokens=1)["usage"]["completion_tokens"] == 1


def test_a_server_that_waits_to_start_its_engine_again_ends_at_once(serving: Any) -> None:
    """Engines that serve nothing are started more and more slowly: here after 0, 0.5, 1.5 and then 3.5 s."""
    server = serving(max_restarts=100)
    for num_restarts in range(1, 5):
        wait_until(lambda: server.get("/health").status_code == 200)
        os.kill(server.engine_pid, signal.SIGKILL)
        wait_until(lambda num=num_restarts: server.front.client.num_restarts == num)
    start_s = time.perf_counter()
    server.stop()
    server.join()
    assert time.perf_counter() - start_s < 2.5


def test_an_engine_that_cannot_start_ends_the_server_with_its_words(serving: Any) -> None:
    with pytest.raises(ConfigError, match="got none"):
        serving(engine={"dies_at_start": "A model must be there, got none: name another."})


def test_probes_tell_the_states_apart(serving: Any) -> None:
    server = serving(engine={"start_s": 1.5}, waits=False)
    wait_until(lambda: is_listening(server))
    assert server.get("/live").status_code == 200
    for path in ("/ready", "/health"):
        answer = server.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    answer = server.post("/v1/completions", body_of(0))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    server.wait()
    assert server.get("/ready").status_code == 200


def is_listening(server: Any) -> bool:
    try:
        return server.get("/live").status_code == 200
    except httpx2.ConnectError:
        return False


def test_a_server_lets_requests_end_when_it_is_stopped(serving: Any) -> None:
    """K01: what runs comes to its end, what is new is refused, and the socket is free afterwards."""
    server = serving(engine={"step_s": 0.01})
    expected = reference(server, 4)
    threads, texts = streams(server, 4)
    wait_until(lambda: server.get("/server_info").json().get("num_running", 0) > 0)
    server.stop()
    answer = wait_for_refusal(server)
    assert answer.json()["error"]["code"] == "server_shutting_down"
    for thread in threads:
        thread.join(60)
    server.join()
    assert texts == expected


def wait_for_refusal(server: Any) -> httpx2.Response:
    while True:
        answer = server.post("/v1/completions", {"model": "demo", "prompt": "a", "max_tokens": 1})
        if answer.status_code == 503:
            return answer


def test_a_second_signal_does_not_wait(serving: Any) -> None:
    server = serving(engine={"step_s": 0.2})
    found: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: found.append(server.post("/v1/completions", body_of(0))))
    asking.start()
    wait_until(lambda: server.get("/server_info").json()["num_open_requests"] > 0)
    start_s = time.perf_counter()
    server.stop()
    server.stop()
    server.join()
    asking.join(10)
    assert time.perf_counter() - start_s < 5.0
    assert found[0].json()["error"]["code"] == "server_shutting_down"
