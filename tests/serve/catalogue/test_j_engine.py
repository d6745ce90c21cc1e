"""Group J of the catalogue: faults of the engine, as clients see them.

B-J05, B-J06 and B-J07 are in tests/serve/test_engine_process.py. B-J11: all programs are compiled before the server is ready, so that there is no compiling after
it that could fail (tests/engine/test_zero_compiles.py).
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from sarathi_jax.cli.main import main
from sarathi_jax.errors import EngineError

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


def test_steps_that_fail_cost_no_request(serving: Any, well: Any) -> None:
    """B-J01: also with all KV pages lost, again and again; no client notices."""
    quiet = serving()
    expected = [texts(quiet.post(COMPLETIONS, body(place))) for place in range(NUM_RUNNING)]
    server = serving(engine={"faults": "step.raise.after_donate@/40,step.raise.before@25", "step_s": 0.004})
    pid = server.engine_pid
    assert [texts(answer) for answer in all_at_once(server, list(range(NUM_RUNNING)))] == expected
    assert server.engine_pid == pid
    well(server)


def test_a_step_that_never_began_costs_no_request(serving: Any, well: Any) -> None:
    """B-J01: the one behind it, which goes on with the same prompt, is under way by then."""
    expected = texts(serving().post(COMPLETIONS, body(1)))
    server = serving(engine={"faults": "step.raise.before@0", "token_budget": 16})
    pid = server.engine_pid
    assert texts(server.post(COMPLETIONS, body(1))) == expected
    assert server.engine_pid == pid
    well(server)


def test_a_poisonous_request_ends_alone(serving: Any, judge: Any, well: Any) -> None:
    """B-J02: whole or as a stream, it gets its error, and the 15 beside it their texts."""
    poison = 400
    server = serving(engine={"faults": f"step.poison={poison}", "step_s": 0.004})
    places = list(range(1, NUM_RUNNING))
    expected = [texts(server.post(COMPLETIONS, body(place))) for place in places]
    wrong = {"model": "demo", "prompt": [poison, 5, 6], "max_tokens": 20}
    pid = server.engine_pid
    for is_stream in (False, True):
        with ThreadPoolExecutor(NUM_RUNNING) as pool:
            good = pool.map(lambda place: server.post(COMPLETIONS, body(place)), places)
            bad = pool.submit(server.post, COMPLETIONS, {**wrong, "stream": is_stream})
            assert [texts(answer) for answer in good] == expected
        if is_stream:
            assert '"internal_error"' in bad.result().text
            assert "[DONE]" not in bad.result().text
        else:
            judge(bad.result(), "500 internal_error -")
    assert server.engine_pid == pid
    well(server)


def test_a_step_without_a_finite_row_is_run_again(serving: Any, well: Any) -> None:
    """B-J04"""
    quiet = serving()
    expected = [texts(quiet.post(COMPLETIONS, body(place))) for place in range(NUM_RUNNING)]
    server = serving(engine={"faults": "step.nan_all@30", "step_s": 0.004})
    assert [texts(answer) for answer in all_at_once(server, list(range(NUM_RUNNING)))] == expected
    well(server)


def test_an_engine_without_a_finite_row_is_given_up(serving: Any, judge: Any, eventually: Any) -> None:
    """B-J04: each request gets its error, the engine is started again, and if no other one does better the server ends with the reason."""
    server = serving(engine={"faults": "step.nan_all"}, max_restarts=1)
    seen: set[int] = set()

    def has_ended() -> bool:
        try:
            answers = all_at_once(server, list(range(8)))
        except httpx2.TransportError:
            return True
        for answer in answers:
            seen.add(answer.status_code)
            code = "server_shutting_down" if "shutting" in answer.text else "engine_unavailable"
            judge(answer, "500 numerical_error -" if answer.status_code == 500 else f"503 {code} -")
        return False

    eventually(has_ended, 60.0)
    server.join()
    assert isinstance(server.error, EngineError)
    assert "finite logits" in str(server.error)
    assert 500 in seen


def test_no_server_is_made_to_fail_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARATHI_JAX_FAULTS", "step.hang@3")
    monkeypatch.delenv("SARATHI_JAX_ALLOW_FAULTS", raising=False)
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main(["serve", "demo", "--port", "0"]))
    assert caught.value.code == 2


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
