"""Faults of steps cost one request: who makes steps fail is found and ended, everybody else gets the tokens of an undisturbed run.

The oracle is `expected_tokens`, which knows no engine. Rows B-J01 to B-J04, goal G-10, invariants I-14, I-31, I-32, I-35.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.engine.explain import explain
from sarathi_jax.engine.faulty_executor import FaultyExecutor
from sarathi_jax.engine.flight_record import Failed, read_record
from sarathi_jax.errors import EngineError
from sarathi_jax.faults import Fault, parse_faults
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.simulation.replay import replay

POISON = 7
type MakeRig = Callable[..., Any]
type Expected = Callable[..., list[int]]
ROOMY: dict[str, Any] = {"num_pages": 256, "max_num_seqs": 16, "token_budget": 64}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sarathi_jax.engine")


def faulty(rig: Any, faults: str | Sequence[Fault], **options: Any) -> Any:
    """The rig, with faults before its device."""
    found = parse_faults(faults) if isinstance(faults, str) else faults
    rig.engine.loop.executor = FaultyExecutor(rig.executor, found, **options)
    return rig


def params(max_tokens: int = 12, **options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "seed": 1, **options})


def prompts(count: int, poisonous: Sequence[int] = ()) -> list[list[int]]:
    return [[POISON if place in poisonous else 50 + place, *range(60, 61 + place % 9)] for place in range(count)]


def run(rig: Any, batch: Sequence[list[int]], **options: Any) -> tuple[dict[int, Any], int]:
    """Run all prompts. Returns: the only sample of each, and how many steps failed."""
    for place, prompt in enumerate(batch):
        rig.engine.add_request(prompt, params(**options), request_id=str(place))
    outputs = {int(name): output.outputs[0] for name, output in rig.outputs().items()}
    scheduler = rig.engine.scheduler
    assert scheduler.num_free_pages == scheduler.limits.num_pages and not scheduler.suspects.is_hunting
    return outputs, rig.executor.num_lost


def check(outputs: dict[int, Any], batch: Sequence[list[int]], guilty: Sequence[int], expected: Expected) -> None:
    """I-35: the guilty have ended with what they had, the others finished right."""
    assert sorted(outputs) == [*range(len(batch))]
    for place, output in outputs.items():
        right = expected(batch[place], 1, 12)
        if place in guilty:
            assert (output.finish_reason, output.stop_reason) == ("error", "internal_error")
            assert output.token_ids == right[: len(output.token_ids)]
        else:
            assert (output.finish_reason, output.stop_reason, output.token_ids) == ("length", None, right)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("point", ["step.raise.before", "step.raise.after_donate"])
@pytest.mark.parametrize("step", [0, 1, 5, 9])
def test_b_j01_a_failed_step_with_16_running(
    make_rig: MakeRig, expected_tokens: Expected, point: str, step: int, overlap: bool
):
    batch = prompts(16)
    outputs, num_failed = run(faulty(make_rig(overlap=overlap, **ROOMY), f"{point}@{step}"), batch)
    check(outputs, batch, (), expected_tokens)
    assert num_failed == 1


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("guilty", range(16))
def test_b_j02_a_poison_request_among_16(make_rig: MakeRig, expected_tokens: Expected, guilty: int, overlap: bool):
    """At most 5 steps fail besides the first."""
    batch = prompts(16, [guilty])
    outputs, num_failed = run(faulty(make_rig(overlap=overlap, **ROOMY), f"step.poison={POISON}"), batch)
    check(outputs, batch, [guilty], expected_tokens)
    assert num_failed <= 6


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    "guilty", [[0, 1], [0, 15], [3, 4, 5], [0, 4, 8, 12], [12, 13, 14, 15], [*range(1, 16, 2)]], ids=str
)
def test_several_poison_requests_are_found_in_turn(
    make_rig: MakeRig, expected_tokens: Expected, guilty: list[int], overlap: bool
):
    batch = prompts(16, guilty)
    outputs, num_failed = run(faulty(make_rig(overlap=overlap, **ROOMY), f"step.poison={POISON}"), batch)
    check(outputs, batch, guilty, expected_tokens)
    assert num_failed <= 6 * len(guilty)


@pytest.mark.parametrize(
    "options",
    [
        {"token_budget": 16},
        {"num_pages": 40},
        {"num_microbatches": 3},
        {"num_microbatches": 3, "policy": "slo", "token_budget": 16},
        {"max_num_seqs": 3},
    ],
)
@pytest.mark.parametrize("overlap", [True, False])
def test_a_poison_request_where_not_all_fit_in_one_step(
    make_rig: MakeRig, expected_tokens: Expected, options: dict[str, Any], overlap: bool
):
    """Steps without it go well in between; that must not start the hunt again and again."""
    batch = prompts(12, [7])
    rig = faulty(make_rig(overlap=overlap, **{**ROOMY, **options}), f"step.poison={POISON}")
    outputs, num_failed = run(rig, batch)
    check(outputs, batch, [7], expected_tokens)
    assert num_failed <= 12


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_poison_request_under_every_policy(make_rig: MakeRig, expected_tokens: Expected, policy: str):
    batch = prompts(12, [5])
    rig = faulty(make_rig(policy=policy, **{**ROOMY, "token_budget": 256, "num_pages": 600}), f"step.poison={POISON}")
    outputs, _ = run(rig, batch)
    check(outputs, batch, [5], expected_tokens)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("overlap", [True, False])
def test_who_comes_during_a_hunt_waits_and_is_served(
    make_rig: MakeRig, expected_tokens: Expected, overlap: bool, policy: str
):
    """A poison request that came in meanwhile would put the blame on another one."""
    options = {**ROOMY, "token_budget": 256, "num_pages": 600}
    rig = faulty(make_rig(overlap=overlap, policy=policy, **options), f"step.poison={POISON}")
    schedule, suspects = rig.engine.scheduler.schedule, rig.engine.scheduler.suspects

    def watched(now_s: float) -> Any:
        found = schedule(now_s)
        requests = [rig.engine.scheduler.get(row.request_id) for row in found.rows] if found else []
        assert all(suspects.may_run(request) for request in requests)
        return found

    rig.engine.scheduler.schedule = watched
    batch = prompts(12, [3, 9])
    outputs: dict[int, Any] = {}
    arriving = list(enumerate(batch))
    while arriving or rig.engine.has_unfinished:
        is_hunting = rig.engine.scheduler.suspects.is_hunting
        if arriving and (len(arriving) > 6 or is_hunting):
            place, prompt = arriving.pop(0)
            rig.engine.add_request(prompt, params(), request_id=str(place))
        for event in rig.engine.step():
            if event.output is not None:
                outputs[int(event.request_id)] = event.output.outputs[0]
        rig.engine.scheduler.check_integrity()
        if arriving and not rig.engine.has_unfinished:
            place, prompt = arriving.pop(0)
            rig.engine.add_request(prompt, params(), request_id=str(place))
    check(outputs, batch, [3, 9], expected_tokens)


def test_a_lone_poison_request_ends_and_the_engine_goes_on(make_rig: MakeRig, expected_tokens: Expected):
    rig = faulty(make_rig(), f"step.poison={POISON}")
    outputs, num_failed = run(rig, prompts(1, [0]))
    check(outputs, prompts(1, [0]), [0], expected_tokens)
    assert num_failed == 4
    check(run(rig, prompts(3))[0], prompts(3), (), expected_tokens)


def test_all_are_poison(make_rig: MakeRig):
    """No step ever goes well, so nobody can be told from a device that is broken."""
    with pytest.raises(EngineError, match="whoever was in them"):
        run(faulty(make_rig(), f"step.poison={POISON}"), prompts(3, [0, 1, 2]))


def test_samples_of_a_poison_prompt_end_with_it(make_rig: MakeRig, expected_tokens: Expected):
    rig = faulty(make_rig(**ROOMY), f"step.poison={POISON}")
    rig.engine.add_request([POISON, 1, 2], params(n=4), request_id="bad")
    rig.engine.add_request([5, 1, 2], params(n=2), request_id="good")
    outputs = rig.outputs()
    assert [(each.index, each.stop_reason, each.token_ids) for each in outputs["bad"].outputs] == [
        (index, "internal_error", []) for index in range(4)
    ]
    assert [each.token_ids for each in outputs["good"].outputs] == [
        expected_tokens([5, 1, 2], 1 + i, 12) for i in (0, 1)
    ]
    assert rig.executor.num_lost <= 5


@pytest.mark.parametrize("victim", range(8))
def test_held_requests_can_be_aborted(make_rig: MakeRig, expected_tokens: Expected, victim: int):
    """I-31, I-32: at every step of a hunt, whoever it is, with the guilty one too."""
    batch = prompts(8, [3])
    for num_steps in range(2, 14):
        rig = faulty(make_rig(**ROOMY), f"step.poison={POISON}")
        for place, prompt in enumerate(batch):
            rig.engine.add_request(prompt, params(), request_id=str(place))
        events: list[Any] = []
        for _ in range(num_steps):
            events += rig.engine.step()
        ended = {event.request_id for event in events if event.output is not None}
        events += rig.engine.abort(str(victim))
        rig.engine.scheduler.check_integrity()
        assert rig.engine.abort(str(victim)) == []
        events += rig.drain()
        outputs = {int(event.request_id): event.output.outputs[0] for event in events if event.output is not None}
        assert len(outputs) == 8 and sum(event.output is not None for event in events) == 8
        if str(victim) not in ended:
            assert outputs.pop(victim).finish_reason == "abort"
        for place, output in outputs.items():
            reason = "error" if place == 3 else "length"
            assert output.finish_reason == reason, (num_steps, place)
            assert place == 3 or output.token_ids == expected_tokens(batch[place], 1, 12)


def test_all_are_aborted_in_a_hunt(make_rig: MakeRig, expected_tokens: Expected):
    """Also all but the one that is accused: it has another chance, alone, and ends."""
    for kept in (None, 0, 3):
        for num_steps in range(2, 14):
            rig = faulty(make_rig(**ROOMY), f"step.poison={POISON}")
            for place, prompt in enumerate(prompts(8, [3])):
                rig.engine.add_request(prompt, params(), request_id=str(place))
            for _ in range(num_steps):
                rig.engine.step()
            for place in range(8):
                if place != kept:
                    rig.engine.abort(str(place))
            rig.engine.scheduler.check_integrity()
            rest = rig.outputs()
            if kept == 3 and rest:
                assert rest["3"].outputs[0].stop_reason == "internal_error"
            outputs, _ = run(rig, prompts(2))
            check(outputs, prompts(2), (), expected_tokens)


# ---- logits that are not finite, and tokens that are none


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("fault", "row"), [("step.nan_row@4:5", 5), ("step.oob_token@4:5", 5), ("step.nan_row@0:2", 2)]
)
def test_b_j03_a_row_that_is_not_finite(
    make_rig: MakeRig, expected_tokens: Expected, fault: str, row: int, overlap: bool
):
    """I-14: nothing that it computed is found later; a prompt that is the same gives the right tokens."""
    batch = [[50 + place, *range(60, 70)] for place in range(8)]
    rig = faulty(make_rig(overlap=overlap, **{**ROOMY, "token_budget": 128}), fault)
    outputs, num_failed = run(rig, batch)
    bad = outputs.pop(row)
    assert (bad.finish_reason, bad.stop_reason, num_failed) == ("error", "numerical_error", 0)
    assert bad.token_ids == expected_tokens(batch[row], 1, 12)[: len(bad.token_ids)]
    check({**outputs, row: outputs[0]}, [*batch[:row], batch[0], *batch[row + 1 :]], (), expected_tokens)
    before = len(rig.executor.schedules)
    rig.engine.add_request(batch[row], params(), request_id="again")
    assert rig.outputs()["again"].outputs[0].token_ids == expected_tokens(batch[row], 1, 12)
    assert rig.executor.schedules[before].rows[0].start == 0


@pytest.mark.parametrize("overlap", [True, False])
def test_b_j04_no_row_is_finite_once(make_rig: MakeRig, expected_tokens: Expected, overlap: bool):
    batch = prompts(8)
    outputs, _ = run(faulty(make_rig(overlap=overlap, **ROOMY), "step.nan_all@4"), batch)
    check(outputs, batch, (), expected_tokens)


def test_b_j04_no_row_is_finite_now_and_then(make_rig: MakeRig, expected_tokens: Expected):
    """A step that goes well in between starts the count again."""
    outputs, _ = run(
        faulty(make_rig(overlap=False, **ROOMY), "step.nan_all@2,step.nan_all@5,step.nan_all@8"), prompts(8)
    )
    check(outputs, prompts(8), (), expected_tokens)


def test_b_j04_no_row_is_finite_twice(make_rig: MakeRig, expected_tokens: Expected):
    """Those of the second step end, and the engine goes on."""
    rig = faulty(make_rig(overlap=False, **ROOMY), "step.nan_all@4-5")
    outputs, _ = run(rig, prompts(8))
    assert {(each.finish_reason, each.stop_reason) for each in outputs.values()} >= {("error", "numerical_error")}
    check(run(rig, prompts(3))[0], prompts(3), (), expected_tokens)


def test_b_j04_no_row_is_ever_finite(make_rig: MakeRig):
    """It is the engine then: whoever runs it starts it again."""
    rig = faulty(make_rig(overlap=False, **ROOMY), "step.nan_all@4-")
    with pytest.raises(EngineError, match="Some row of 3 steps must have finite logits, got none up to step 6"):
        run(rig, prompts(20))


def test_a_single_row_that_is_not_finite_is_its_own_fault(make_rig: MakeRig):
    outputs, num_failed = run(faulty(make_rig(), "step.nan_all@2"), prompts(1))
    assert (outputs[0].stop_reason, num_failed) == ("numerical_error", 0)


@pytest.mark.parametrize(
    ("fault", "name"), [("step.nan_all@2", "numerical_error"), (f"step.poison={POISON}", "internal_error")]
)
def test_the_last_event_says_what_the_error_was(make_rig: MakeRig, fault: str, name: str):
    rig = faulty(make_rig(), fault)
    rig.engine.add_request([POISON, 1], params(6))
    events = rig.drain()
    assert [event.fault for event in events] == [None] * (len(events) - 1) + [name]


@pytest.mark.parametrize("guilty", [3, 11])
def test_a_step_that_fails_before_the_one_in_flight_is_read(make_rig: MakeRig, expected_tokens: Expected, guilty: int):
    """As the real executor does where a step can't be dispatched: the handle of the step before it tells first. The blame is not on those who were in that one."""
    batch = [[POISON if place == guilty else 50 + place, *range(60, 75)] for place in range(12)]
    rig = make_rig(overlap=True, **{**ROOMY, "token_budget": 16})
    submit, device = rig.executor.submit, rig.executor

    class Handle:
        def __init__(self, inner: Any) -> None:
            self._inner, self._generation = inner, device.num_lost
            self.bucket, self.is_ready = inner.bucket, inner.is_ready

        def result(self) -> Any:
            if device.num_lost != self._generation:
                raise EngineError("Its pages must be there, got a failure of another step.")
            return self._inner.result()

    def dispatch(schedule: Any) -> Any:
        handle = Handle(submit(schedule))
        if any(row.request_id == str(guilty) for row in schedule.rows):
            device.forget_state(device.num_lost)
        return handle

    rig.executor.submit = dispatch
    outputs, num_failed = run(rig, batch)
    check(outputs, batch, [guilty], expected_tokens)
    assert num_failed <= 8


def test_a_replay_tells_who_ended_for_a_failed_step(make_rig: MakeRig, tmp_path: Path):
    rig = faulty(make_rig(), f"step.poison={POISON}")
    run(rig, prompts(1, [0]))
    rig.engine.recorder.dump(tmp_path / "run.jsonl")
    record = read_record(tmp_path / "run.jsonl")
    assert replay(record).difference is None
    place, failed = next(
        (place, event) for place, event in enumerate(record.events) if isinstance(event, Failed) and event.ended
    )
    assert failed.ended == [(0, "error")]
    record.events[place] = Failed(failed.step, failed.now_s)
    found = replay(record).difference
    assert found is not None and (found.event, found.what) == (place, "requests that ended")
    explanation = explain(read_record(tmp_path / "run.jsonl"), "0")
    assert explanation.end == "error" and explanation.num_tokens == 0
