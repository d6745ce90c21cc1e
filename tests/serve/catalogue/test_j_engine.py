"""Group J of the catalogue: faults of the engine, as clients see them.

B-J05, B-J06 and B-J07 are in tests/serve/test_engine_process.py. B-J11: all programs are compiled before the server is ready, so that there is no compiling after
it that could fail (tests/engine/test_zero_compiles.py).
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

COMPLETIONS = "/v1/completions"
NUM_RUNNING = 16


def body(place: int, **fields: Any) -> dict[str, Any]:
    """place: makes the prompt and the text another one."""
    return {
        "model": "demo",
        "prompt": [20 + place, *range(100, 140)],
        "max_tokens": 60,
        "temperature": 1.0,
        "seed": place,
        "ignore_eos": True,
        "n": 2 if place % 4 == 0 else 1,
        **fields,
    }


def texts(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


def all_at_once(server: Any, places: list[int]) -> list[Any]:
    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(lambda place: server.post(COMPLETIONS, body(place)), places))


def test_more_than_the_pool_holds_waits_or_is_preempted(serving: Any, well: Any) -> None:
    """B-J08: and brings what it brings alone."""
    server = serving(engine={"num_pages": 24, "max_model_len": 256, "max_num_seqs": 16})
    expected = [texts(server.post(COMPLETIONS, body(place))) for place in range(NUM_RUNNING)]
    answers = all_at_once(server, list(range(NUM_RUNNING)))
    assert [texts(answer) for answer in answers] == expected
    timing = [answer.json().get("timing") for answer in answers]
    assert timing == [None] * NUM_RUNNING
    well(server)


def test_preempted_again_and_again(serving: Any, well: Any) -> None:
    """B-J10: every third step takes a request's pages; each ends, with the text that it has alone."""
    quiet = serving()
    expected = [texts(quiet.post(COMPLETIONS, body(place))) for place in range(NUM_RUNNING)]
    server = serving(engine={"preempt_every_steps": 3})
    with ThreadPoolExecutor(NUM_RUNNING) as pool:
        answers = list(pool.map(lambda place: server.post(COMPLETIONS, body(place, timing=True)), range(NUM_RUNNING)))
    assert [texts(answer) for answer in answers] == expected
    assert sum(answer.json()["timing"]["num_preemptions"] for answer in answers) > 0
    well(server)


def test_a_row_that_is_not_finite_ends_its_request_alone(serving: Any, judge: Any, well: Any) -> None:
    """B-J03: its prompt is not in the cache afterwards, and the others have their text."""
    marked = "not to be computed"
    server = serving(engine={"nan_prompt": marked})
    places = list(range(1, NUM_RUNNING))
    expected = [texts(server.post(COMPLETIONS, body(place))) for place in places]
    wrong = {"model": "demo", "prompt": marked, "max_tokens": 20}
    with ThreadPoolExecutor(NUM_RUNNING) as pool:
        bad = pool.submit(server.post, COMPLETIONS, wrong)
        good = list(pool.map(lambda place: server.post(COMPLETIONS, body(place)), places))
    assert [texts(answer) for answer in good] == expected
    judge(bad.result(), "500 numerical_error -")
    judge(server.post(COMPLETIONS, wrong), "500 numerical_error -")
    well(server)


def test_a_killed_template_worker_is_replaced(serving: Any, judge: Any, well: Any) -> None:
    """B-J09"""
    server = serving()
    expected = server.chat(max_tokens=8)["choices"][0]["message"]["content"]
    for _ in range(2):
        worker = server.front.prompts._template._process
        process_id = worker.process_id
        os.kill(process_id, signal.SIGKILL)
        worker._process.wait()
        answer = server.chat(max_tokens=8)
        assert answer["choices"][0]["message"]["content"] == expected
        assert worker.process_id != process_id
    well(server)
