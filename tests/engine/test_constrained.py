"""Constraints in both loops: the same tokens whatever runs beside them, nobody left out of a step for them, and runs that are recorded and replayed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sarathi_jax.engine.flight_record import read_record
from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.simulation.replay import replay
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.token_constraint import ConstraintFactory
from sarathi_jax.text.tokenizer import Tokenizer

DIGITS = frozenset(range(48, 58))


@dataclass
class Numbers:
    """So many digits, then nothing; fails_at: the token that it can't go on after."""

    count: int
    fails_at: int | None = None
    num_taken: int = 0

    @property
    def is_ended(self) -> bool:
        return self.num_taken == self.count

    def mask(self) -> np.ndarray:
        words = np.zeros(8, np.uint32)
        words[1] = 0x3FF << 16  # 48 to 57
        return words

    def accept(self, token_id: int) -> bool:
        assert token_id in DIGITS
        self.num_taken += 1
        return self.num_taken != self.fails_at

    def copy(self) -> "Numbers":
        return Numbers(self.count, self.fails_at, self.num_taken)


STRUCTURED = StructuredOutput(regex="[0-9]*")


def add(rig: Any, name: str, seed: int, constraint: Any = None, **options: Any) -> None:
    form = {} if constraint is None else {"structured": STRUCTURED}
    params = SamplingParams(seed=seed, **{"max_tokens": 12, **form, **options})
    rig.engine.add_request([1, seed % 7 + 2, 3], params, request_id=name, constraint=constraint)


def run(rig: Any, names: Sequence[str] = ("f0", "c1", "f2", "c3", "c4")) -> dict[str, list[list[int]]]:
    """f: free, c: constrained; the number is seed and length."""
    for name in names:
        number = int(name[1:])
        add(rig, name, number, Numbers(number + 4) if name[0] == "c" else None, n=1 + number % 2)
    outputs = rig.outputs()
    for name, output in outputs.items():
        if name[0] == "c":
            assert [each.finish_reason for each in output.outputs] == ["stop"] * len(output.outputs)
            assert all(DIGITS.issuperset(each.token_ids) for each in output.outputs)
    return {name: [each.token_ids for each in output.outputs] for name, output in outputs.items()}


OPTIONS: list[dict[str, Any]] = [
    {"overlap": False},
    {"preempt_every_steps": 3},
    {"preempt_every_steps": 2, "overlap": False},
    {"max_num_seqs": 2},
    {"num_pages": 33, "token_budget": 5},
    {"num_microbatches": 2},
    {"num_microbatches": 3, "overlap": False, "preempt_every_steps": 4},
    {"num_microbatches": 2, "preempt_every_steps": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tokens_are_the_same_however_they_are_scheduled(make_rig: Callable[..., Any], options: dict[str, Any]):
    expected = run(make_rig())
    assert run(make_rig(**options)) == expected
    for name in expected:
        assert run(make_rig(), [name])[name] == expected[name], "alone, and with neighbours"


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_nobody_is_left_out_of_a_step_for_a_constraint(make_rig: Callable[..., Any], num_microbatches: int):
    rig = make_rig(token_budget=64, num_microbatches=num_microbatches, max_num_seqs=4)
    for name, constraint in (("f0", None), ("c1", Numbers(9)), ("f2", None), ("c3", Numbers(7))):
        add(rig, name, int(name[1]), constraint)
    turns = dict.fromkeys(("f0", "c1", "f2", "c3"), 0)
    rig.drain()
    for schedule in rig.executor.schedules:
        for row in schedule.rows:
            turns[row.request_id] += row.does_sample
    assert len(rig.engine.records) <= 12 * num_microbatches + 2, "as many steps as the longest needs"
    assert turns["c1"] == 9
    assert turns["c3"] == 7
    assert turns["f0"] - 12 in (0, 1)


def test_the_loop_runs_ahead_except_while_a_constrained_request_runs(make_rig: Callable[..., Any]):
    rig = make_rig()
    add(rig, "free", 1, max_tokens=20)
    in_flight = []
    for turn in range(12):
        if turn == 3:
            add(rig, "bound", 2, Numbers(4))
        rig.engine.step()
        in_flight.append(rig.engine.loop.num_in_flight)
    assert in_flight == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]
    rig.drain()


def test_a_constraint_that_fails_ends_its_request_with_an_error_and_no_other(make_rig: Callable[..., Any]):
    alone = run(make_rig(), ["f2"])
    rig = make_rig()
    add(rig, "bad", 1, Numbers(9, fails_at=3))
    add(rig, "f2", 2, n=1)
    outputs = rig.outputs()
    assert [each.token_ids for each in outputs["f2"].outputs] == alone["f2"]
    (bad,) = outputs["bad"].outputs
    assert (bad.finish_reason, bad.stop_reason) == ("error", "grammar_limit")


def test_an_abort_in_the_middle_leaves_nothing_behind(make_rig: Callable[..., Any]):
    rig = make_rig()
    add(rig, "bound", 1, Numbers(9))
    for _ in range(3):
        rig.engine.step()
    (event,) = rig.engine.abort("bound")
    assert event.finish_reason == "abort"
    rig.drain()
    assert not rig.engine.scheduler.is_constrained
    assert rig.engine.scheduler.num_free_pages == 64


@pytest.mark.parametrize("options", [{}, *OPTIONS[:5]], ids=str)
def test_a_recorded_run_is_replayed(make_rig: Callable[..., Any], tmp_path: Path, options: dict[str, Any]):
    """The replay has no constraints: ends are in the record."""
    rig = make_rig(**options)
    add(rig, "bad", 1, Numbers(9, fails_at=3))
    run(rig)
    rig.engine.recorder.dump(tmp_path / "run.jsonl")
    record = read_record(tmp_path / "run.jsonl")
    replayed = replay(record)
    assert replayed.difference is None
    assert replayed.num_requests == 8
    assert {reason for each in record.events for _, reason in getattr(each, "ended", ())} >= {"stop", "error"}


def test_a_model_without_a_tokenizer_has_no_structures(make_rig: Callable[..., Any]):
    with pytest.raises(
        RequestError, match=r"structured needs a model with a tokenizer.json, got one without: leave it out"
    ):
        make_rig().engine.add_request([1], SamplingParams(structured=STRUCTURED))


def test_an_engine_makes_constraints_itself(make_rig: Callable[..., Any], tokenizer: Tokenizer):
    rig = make_rig(tokenizer=tokenizer)
    rig.engine._eos_token_ids = (0,)
    rig.engine._constraints = ConstraintFactory(tokenizer.to_json(), 256, (0,))
    rig.engine.add_request(
        "say", SamplingParams(structured=StructuredOutput(choice=("yes", "yesterday", "no")), n=5, max_tokens=9)
    )
    with pytest.raises(RequestError, match="regex must be one that can be compiled"):
        rig.engine.add_request("say", SamplingParams(structured=StructuredOutput(regex="[a")))
    (output,) = rig.outputs().values()
    assert {each.text for each in output.outputs} <= {"yes", "yesterday", "no"}


@pytest.mark.parametrize("overlap", [True, False])
def test_an_output_goes_on_where_an_engine_that_is_no_more_left_it(
    make_rig: Callable[..., Any], tokenizer: Tokenizer, overlap: bool
):
    params = SamplingParams(structured=StructuredOutput(regex="(ab|cd[x-z]){5}q"), seed=3, max_tokens=40)

    def rest(given_ids: list[int]) -> list[int]:
        rig = make_rig(tokenizer=tokenizer, overlap=overlap)
        rig.engine._eos_token_ids, rig.engine._constraints = (0,), ConstraintFactory(tokenizer.to_json(), 256, (0,))
        rig.engine.add_request("say", params, request_id="r", output_token_ids=given_ids)
        return rig.outputs()["r"].outputs[0].token_ids

    whole = rest([])
    assert bytes(whole).decode().endswith("q")
    for count in range(1, len(whole)):
        assert rest(whole[:count]) == whole
