"""What the flight recorder writes to a folder without being asked: steps that fail, stall, take too long, or wait for a compiler."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.engine import flight_watch
from sarathi_jax.engine.flight_record import read_record
from sarathi_jax.engine.flight_watch import FlightWatch, TypicalTime
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies.sarathi import SarathiPolicy
from sarathi_jax.scheduling.policy import Plan, View

type MakeRig = Callable[..., Any]


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=1)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sarathi_jax.engine")


@pytest.fixture
def watched(make_rig: MakeRig, tmp_path: Path) -> Callable[..., Any]:
    """A rig whose recorder writes to a folder."""

    def make(**options: Any) -> Any:
        rig = make_rig(overlap=False, **options)
        rig.engine.recorder.watch = FlightWatch(rig.engine.recorder, rig.clock, tmp_path / "records")
        return rig

    return make


def reasons(rig: Any, folder: Path) -> list[str]:
    """What the files of a folder were written for."""
    rig.engine.close()
    return [read_record(path).header.reason for path in sorted((folder / "records").glob("*"))]


def test_a_failed_step_is_written_down(watched: Callable[..., Any], tmp_path: Path):
    rig = watched()
    rig.executor.failing_steps = {3}
    rig.engine.add_request([1], params(9))
    rig.drain()
    assert reasons(rig, tmp_path) == ["failed-step: step 3 failed"]


def test_a_slow_step_is_written_down(watched: Callable[..., Any], tmp_path: Path):
    """Steps take a second each; the 20th takes 7."""
    rig = watched()
    rig.engine.add_request([1], params(30))
    for number in range(30):
        rig.executor.step_s = 7.0 if number == 20 else 1.0
        rig.engine.step()
    assert reasons(rig, tmp_path) == ["slow-step: step 20 took 7.000 s, and 1.000 s is usual for fake"]


class StallingPolicy(SarathiPolicy):
    """Leaves out all decodes while somebody waits, as engines do that put prompts first."""

    def check(self, limits: SchedulerLimits) -> None:
        del limits

    def plan(self, view: View) -> Plan:
        plan = super().plan(view)
        if not plan.admitted or len(plan.chunks) == len(plan.admitted):
            return plan
        return Plan([chunk for chunk in plan.chunks if chunk[0] in plan.admitted], plan.admitted, has_prefill=True)


@pytest.mark.parametrize("policy", ["sarathi", StallingPolicy()])
def test_a_stall_is_written_down(watched: Callable[..., Any], tmp_path: Path, policy: Any):
    rig = watched(policy=policy)
    rig.engine.add_request([1], params(9), request_id="a")
    for _ in range(3):
        rig.engine.step()
    rig.engine.add_request([2] * 9, params(1), request_id="b")
    rig.drain()
    assert reasons(rig, tmp_path) == ([] if policy == "sarathi" else ["stall: a was left out of step 3"])


@dataclass
class Program:
    name: str
    seconds: float


def test_a_compile_while_requests_wait_is_written_down(watched: Callable[..., Any], tmp_path: Path):
    rig = watched()
    compiled: list[Any] = []
    rig.engine.recorder._compiled = compiled
    rig.engine.add_request([1], params(9))
    rig.engine.step()
    compiled.append(Program("decode 4x4 greedy", 0.5))
    rig.drain()
    assert reasons(rig, tmp_path) == ["compile: decode 4x4 greedy was compiled while requests waited"]


def test_there_is_one_file_a_minute_and_not_too_many(
    watched: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A step a second, of which every second one fails: in five minutes no more than five files, nor more than MAX_FILES."""
    rig = watched(token_budget=128)  # what was lost is computed again in one step
    rig.executor.failing_steps = set(range(1, 400, 2))
    rig.engine.add_request([1], params(120))
    monkeypatch.setattr(flight_watch, "MAX_FILES", 3)
    while rig.clock.now() < 300 and rig.engine.has_unfinished:
        rig.engine.step()
        rig.engine.recorder.close()
    assert len(reasons(rig, tmp_path)) == 3


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(watched: Callable[..., Any], tmp_path: Path):
    (tmp_path / "records").write_text("a file")
    rig = watched()
    rig.executor.failing_steps = {3}
    rig.engine.add_request([1], params(9), request_id="a")
    assert rig.outputs()["a"].outputs[0].finish_reason == "length"
    rig.engine.close()


def test_the_typical_time_is_the_median_of_the_latest():
    typical = TypicalTime()
    for value in range(1, 16):
        typical.add(value)
    assert typical.median is None
    typical.add(16)
    assert typical.median == 9
    for value in range(17, 165):
        typical.add(value)
    assert typical.median == 133  # of 101 .. 164
