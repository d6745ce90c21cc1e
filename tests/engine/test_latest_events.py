"""The latest events of a flight recorder, copied while the engine runs: they explain what a file of all of them explains, as far as they go."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.engine.explain import explain, late_tokens
from sarathi_jax.engine.flight_dump import record_of
from sarathi_jax.engine.flight_record import read_record
from sarathi_jax.engine.record_steps import read_run
from sarathi_jax.engine.request_story import find_request, tell_story
from sarathi_jax.errors import EngineError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.serve import explainer


@pytest.mark.parametrize("num_events", [10**6, 150, 60])
def test_the_latest_events_explain_the_gaps_that_the_outputs_have(
    make_rig: Callable[..., Any],
    random_run: Callable[..., dict[str, Any]],
    tokenizer: Any,
    tmp_path: Path,
    num_events: int,
):
    rig = make_rig(tokenizer=tokenizer, num_pages=32)
    outputs = random_run(rig, 3, 36)
    rig.engine.recorder.dump(tmp_path / "flight.jsonl")
    whole = read_record(tmp_path / "flight.jsonl")
    record = record_of(rig.engine.recorder, rig.engine.recorder.latest(num_events)())
    run = read_run(record)
    assert len(record.events) == min(num_events, len(whole.events))
    num_gaps = 0
    for number in record.requests:
        facts = find_request(record, f"#{number}")
        found = late_tokens(run, tell_story(run, facts), -1.0, 10**6)
        of_whole = explain(whole, f"#{number}", slo_s=-1.0).late
        # A ring that begins in the middle of a life knows its end.
        assert [(each.number, each.gap_s) for each in found] == [
            (each.number, each.gap_s) for each in of_whole[len(of_whole) - len(found) :]
        ]
        for token in found:
            assert sum(cause.seconds for cause in token.causes) == pytest.approx(token.gap_s, abs=1e-7)
        output = outputs.get(facts.id)
        if num_events > len(whole.events) and output is not None and facts.id != "again":
            assert [token.gap_s for token in found] == output.outputs[0].metrics.tbt_s
        num_gaps += len(found)
    assert num_gaps >= 20


def test_of_too_many_late_tokens_the_longest_are_told(make_rig: Callable[..., Any]):
    """Steps of 1, 2, ... seconds: the gaps are as long as their steps."""
    rig = make_rig(overlap=False)
    rig.engine.add_request([1], SamplingParams(max_tokens=9, seed=1), request_id="a")
    for seconds in (1, 3, 9, 2, 8, 7, 1, 4, 5):
        rig.executor.step_s = seconds
        rig.engine.step()
    record = record_of(rig.engine.recorder, rig.engine.recorder.latest(1000)())
    run = read_run(record)
    found = late_tokens(run, tell_story(run, find_request(record, "a")), 2.0, 3)
    assert [(each.number, each.gap_s) for each in found] == [(3, 9.0), (5, 8.0), (6, 7.0)]


def test_each_sample_has_its_own_late_tokens(make_rig: Callable[..., Any]):
    """The second one's is late; the first one had ended before that."""
    rig = make_rig(overlap=False)
    recorder = rig.engine.recorder
    rig.engine.add_request([1], SamplingParams(max_tokens=9, seed=1, n=2), request_id="a", arrival_s=0.0)
    followed = explainer.Followed(recorder, 0, 4, 2, recorder.num_events)
    for seconds in (1, 1, 1, 1, 9, 1):
        if seconds == 9:
            rig.engine.end_sample("a", 0)
        rig.executor.step_s = seconds
        rig.engine.step()
    (late,) = explainer.late_tokens(followed, recorder.latest(1000)())
    assert (late.sample, late.at_s, late.gap_s) == (5, 13.0, 9.0)
    assert late.token == rig.executor.schedules[4].rows[0].num_output_tokens + 1


def test_only_requests_that_run_have_a_number(make_rig: Callable[..., Any]):
    rig = make_rig()
    recorder = rig.engine.recorder
    for name in ("a", "b"):
        rig.engine.add_request([1], SamplingParams(max_tokens=2, seed=1), request_id=name)
    assert (recorder.number("a"), recorder.number("b"), recorder.number("c")) == (0, 1, None)
    assert recorder.num_events == 2
    rig.drain()
    assert recorder.number("a") is None


def test_a_recorder_that_has_stopped_has_no_events(make_rig: Callable[..., Any]):
    rig = make_rig()
    rig.engine.recorder.fault = RuntimeError("a fault")
    with pytest.raises(EngineError, match="a fault of its own"):
        rig.engine.recorder.latest(10)
