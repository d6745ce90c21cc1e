"""Fault points: how they are named, that they strike where they are told to, and that without any nothing stands before the executor."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.engine.faulty_executor import FaultyExecutor
from sarathi_jax.errors import ConfigError, EngineError
from sarathi_jax.faults import POINTS, Fault, faults_from_environment, parse_faults, refuse_in_production
from sarathi_jax.sampling_params import SamplingParams

type MakeRig = Callable[..., Any]


def test_faults_are_read():
    text = "step.raise.after_donate@12, step.nan_row@20:3,step.poison=7777,step.hang@30-:5s,step.slow@/3:50ms,engine.kill9@4-6"
    assert parse_faults(text) == (
        Fault("step.raise.after_donate", 12, 12),
        Fault("step.nan_row", 20, 20, row=3),
        Fault("step.poison", token=7777),
        Fault("step.hang", 30, None, seconds=5.0),
        Fault("step.slow", 2, None, every=3, seconds=0.05),
        Fault("engine.kill9", 4, 6),
    )
    assert parse_faults("") == parse_faults(" , ") == ()


@pytest.mark.parametrize(
    ("fault", "struck"),
    [
        ("step.nan_all", [*range(10)]),
        ("step.nan_all@3", [3]),
        ("step.nan_all@3-5", [3, 4, 5]),
        ("step.nan_all@7-", [7, 8, 9]),
        ("step.nan_all@/4", [3, 7]),
    ],
)
def test_steps_that_a_fault_strikes(fault: str, struck: list[int]):
    [found] = parse_faults(fault)
    assert [step for step in range(10) if found.strikes(step)] == struck


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step.rise@3", "must name points among step.raise.before, .* got 'step.rise'"),
        ("step.poison", "must have a token after step.poison"),
        ("step.nan_row=3", "must have a token after step.poison"),
        ("step.nan_all:3", "must have no value after step.nan_all, .* leave out :3"),
        ("step.hang@3:5", "must have a time with its unit, got '5' in"),
        ("step.hang@3:xs", "must have a time with its unit, got 'xs' in"),
        ("step.nan_row@x", "must have whole numbers, got 'x' in"),
        ("step.nan_row@-3", "must have whole numbers, got '' in"),
        ("step.nan_row@3:-1", "must have whole numbers, got '-1' in"),
        ("step.nan_row@３", "must have whole numbers"),
        ("step.nan_row@5-3", "must have steps in order"),
        ("step.nan_row@/0", "must have steps that are at least 1 apart"),
    ],
)
def test_what_can_not_be_read_is_refused(text: str, message: str):
    with pytest.raises(ConfigError, match=f"SARATHI_JAX_FAULTS {message}"):
        parse_faults(text)


def test_a_server_refuses_faults_that_nobody_permits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SARATHI_JAX_FAULTS", raising=False)
    monkeypatch.delenv("SARATHI_JAX_ALLOW_FAULTS", raising=False)
    refuse_in_production()
    monkeypatch.setenv("SARATHI_JAX_FAULTS", "step.nan_all")
    for permission in ("", "0", "yes"):
        monkeypatch.setenv("SARATHI_JAX_ALLOW_FAULTS", permission)
        with pytest.raises(
            ConfigError, match=r"must not be made to fail, got SARATHI_JAX_FAULTS=step\.nan_all: unset it"
        ):
            refuse_in_production()
    monkeypatch.setenv("SARATHI_JAX_ALLOW_FAULTS", "1")
    refuse_in_production()
    assert faults_from_environment() == (Fault("step.nan_all"),)


def run(rig: Any, faults: str, num_steps: int, **options: Any) -> list[Any]:
    """Results of steps that are submitted one by one, or the error. Returns: of each."""
    faulty = FaultyExecutor(rig.executor, parse_faults(faults), **options)
    for place in range(3):
        rig.engine.add_request([5 + place, 8], SamplingParams(max_tokens=50, seed=1), request_id=f"r{place}")
    found: list[Any] = []
    for _ in range(num_steps):
        schedule = rig.engine.scheduler.schedule(0.0)
        assert schedule is not None
        handle = faulty.submit(schedule)
        try:
            result = handle.result()
        except EngineError as error:
            rig.engine.scheduler.fail_step(schedule)
            found.append(str(error))
            continue
        found.append(result)
        rig.engine.scheduler.complete(schedule, result, 0.0)
    return found


def test_rows_that_are_made_wrong(make_rig: MakeRig):
    results = run(make_rig(), "step.nan_row@1:4,step.oob_token@2:0,step.nan_all@3", 4)
    assert [result.is_finite for result in results] == [None, [True, False, True], None, [False]]
    assert [max(result.token_ids) < 256 for result in results] == [True, True, False, True]
    assert results[2].token_ids[0] == 2**31 - 1


@pytest.mark.parametrize(("point", "num_run"), [("step.raise.before", 3), ("step.raise.after_donate", 4)])
def test_steps_that_are_made_to_fail_lose_their_pages(make_rig: MakeRig, point: str, num_run: int):
    rig = make_rig()
    results = run(rig, f"{point}@2", 4)
    assert [isinstance(result, str) for result in results] == [False, False, True, False]
    assert "Step 2 must run, got a fault on purpose" in results[2]
    assert (rig.executor.num_lost, rig.executor.num_steps) == (1, num_run)


def test_a_poisonous_prompt_is_known_by_its_first_token(make_rig: MakeRig):
    """Also when the first chunk after a failure begins with pages that were found, and not when its id is another request's later."""
    rig = make_rig()
    results = run(rig, "step.poison=6", 2)
    assert all(isinstance(result, str) for result in results)
    for place in range(3):
        rig.engine.scheduler.abort(f"r{place}")
    faulty = FaultyExecutor(rig.executor, parse_faults("step.poison=6"))
    for token in (6, 7):
        rig.engine.add_request([token] * 9, SamplingParams(max_tokens=4, seed=1), request_id="again")
        schedule = rig.engine.scheduler.schedule(0.0)
        handle = faulty.submit(schedule)
        if token == 6:
            with pytest.raises(EngineError):
                handle.result()
            rig.engine.scheduler.fail_step(schedule)
            rig.engine.abort("again")
        else:
            assert len(handle.result().token_ids) == 1


def test_steps_that_hang_or_are_slow(make_rig: MakeRig):
    waited: list[float] = []
    run(make_rig(), "step.hang@1:5s,step.slow@2-:50ms", 4, sleep=waited.append)
    assert waited == [pytest.approx(5, abs=0.5), pytest.approx(0.05, abs=0.05), pytest.approx(0.05, abs=0.05)]
    rig = make_rig(step_s=0.0)
    rig.engine.add_request([1], SamplingParams(max_tokens=2))
    faulty = FaultyExecutor(rig.executor, parse_faults("step.hang:5s"))
    assert not faulty.submit(rig.engine.scheduler.schedule(0.0)).is_ready()


@pytest.mark.parametrize(("point", "code"), [("engine.kill9", -signal.SIGKILL), ("engine.exit", 1)])
def test_points_that_end_the_process(point: str, code: int):
    program = (
        "from sarathi_jax.engine.faulty_executor import FaultyExecutor; from sarathi_jax.faults import parse_faults;"
        "from sarathi_jax.scheduling.schedule import Schedule; from unittest.mock import Mock;"
        f"faulty = FaultyExecutor(Mock(), parse_faults('{point}@1'));"
        "faulty.submit(Schedule(0, (), 0, 0)); print('one', flush=True); faulty.submit(Schedule(1, (), 0, 0)); print('two')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (code, "one\n"), done.stderr


def test_every_point_does_something(make_rig: MakeRig):
    """Each that the parser knows is one that the executor acts on."""
    for point in POINTS:
        if point.startswith("engine."):
            continue
        name = f"{point}=5@0" if point == "step.poison" else f"{point}@0"
        waited: list[float] = []
        [plain], [found] = run(make_rig(), "", 1), run(make_rig(), name, 1, sleep=waited.append)
        assert found != plain or waited, point
