"""Constraints in the scheduler: rows that sample carry masks, tokens are taken in once, and an output ends where nothing may follow."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from sarathi_jax.scheduling.schedule import StepResult


@dataclass
class Script:
    """Tokens must come in this order; after the last nothing may. taken: those that came."""

    tokens: tuple[int, ...]
    taken: list[int] = field(default_factory=list)

    @property
    def is_ended(self) -> bool:
        return len(self.taken) == len(self.tokens)

    def mask(self) -> np.ndarray:
        words = np.zeros(4, np.uint32)
        token_id = 0 if self.is_ended else self.tokens[len(self.taken)]
        words[token_id // 32] = 1 << token_id % 32
        return words

    def accept(self, token_id: int) -> bool:
        self.taken.append(token_id)
        return self.taken == list(self.tokens[: len(self.taken)])

    def copy(self) -> "Script":
        return Script(self.tokens, list(self.taken))


def only_token(mask: np.ndarray) -> int:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).item()


def step(scheduler: Any, tokens: Callable[[Any], int] | None = None) -> Any:
    """One step; rows with a mask sample its only token, others 50. Returns: the schedule and the outputs."""
    schedule = scheduler.schedule(0.0)
    sampled = [50 if row.token_mask is None else only_token(row.token_mask) for row in schedule.rows]
    token_ids = [tokens(row) if tokens else each for row, each in zip(schedule.rows, sampled, strict=True)]
    outputs = scheduler.complete(schedule, StepResult(token_ids), 0.0)
    scheduler.check_integrity()
    return schedule, outputs


def test_only_rows_that_sample_under_a_constraint_have_masks(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler(token_budget=16)
    scheduler.add(make_request("free", 3))
    scheduler.add(make_request("bound", 20, constraint=Script((70, 71, 72))))
    masked = [[(row.request_id, row.token_mask is not None) for row in step(scheduler)[0].rows] for _ in range(3)]
    assert masked == [
        [("free", False), ("bound", False)],
        [("free", False), ("bound", True)],
        [("free", False), ("bound", True)],
    ]
    assert scheduler.get("bound").output_token_ids == [70, 71]


def test_an_output_ends_where_nothing_may_follow_and_its_last_token_is_of_it(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler()
    scheduler.add(make_request("bound", 3, constraint=Script((70, 71)), max_tokens=2, eos_token_ids=(99,)))
    assert [each.finish_reason for each in step(scheduler)[1]] == [None]
    (last,) = step(scheduler)[1]
    assert (last.token_id, last.finish_reason, last.stop_token_id) == (71, "stop", None)
    assert not scheduler.has_unfinished
    assert not scheduler.is_constrained


def test_an_end_of_sequence_token_ends_it_as_ever(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler()
    scheduler.add(make_request("bound", 3, constraint=Script((70, 99, 70)), eos_token_ids=(99,)))
    step(scheduler)
    (last,) = step(scheduler)[1]
    assert (last.token_id, last.finish_reason, last.stop_token_id) == (99, "stop", 99)


def test_a_constraint_that_can_not_go_on_costs_its_request_alone(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler()
    scheduler.add(make_request("free", 3))
    scheduler.add(make_request("bound", 3, constraint=Script((70, 71))))
    _, outputs = step(scheduler, lambda _: 55)
    assert [(each.request.request_id, each.token_id, each.finish_reason) for each in outputs] == [
        ("bound", None, "error"),
        ("free", 55, None),
    ]
    assert scheduler.num_running == 1


def test_each_sample_has_a_constraint_of_its_own(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler()
    samples = scheduler.add(make_request("bound", 3, constraint=Script((70, 71, 72)), n=3))
    while scheduler.has_unfinished:
        step(scheduler)
    assert [sample.output_token_ids for sample in samples] == [[70, 71, 72]] * 3
    assert len({id(sample.constraint) for sample in samples}) == 3


def test_preemption_leaves_it_where_it_is(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler(preempt_every_steps=3)
    request = make_request("bound", 3, constraint=Script(tuple(range(60, 80))), max_tokens=30)
    scheduler.add(request)
    while scheduler.has_unfinished:
        step(scheduler)
    assert request.output_token_ids == request.constraint.taken == list(range(60, 80))
    assert request.num_preemptions > 3


def test_a_failed_step_brings_it_no_token(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler()
    request = make_request("bound", 3, constraint=Script((70, 71, 72)))
    scheduler.add(request)
    step(scheduler)
    scheduler.fail_step(scheduler.schedule(0.0))
    while scheduler.has_unfinished:
        step(scheduler)
    assert request.output_token_ids == request.constraint.taken == [70, 71, 72]


def test_whether_a_loop_has_to_read_first_is_known(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(make_request("free", 3, max_tokens=2))
    scheduler.add(make_request("bound", 3, constraint=Script((70, 71))))
    seen = []
    while scheduler.has_unfinished:
        step(scheduler)
        seen.append(scheduler.is_constrained)
    assert seen == [False, False, True, False]
    scheduler.add(make_request("again", 3, constraint=Script((70, 71))))
    step(scheduler)
    assert scheduler.is_constrained
    scheduler.abort("again")
    assert not scheduler.is_constrained


def test_a_step_planned_before_the_token_is_known_is_a_fault(make_scheduler: Any, make_request: Any):
    scheduler = make_scheduler()
    scheduler.add(make_request("bound", 3, constraint=Script((70, 71))))
    scheduler.schedule(0.0)
    with pytest.raises(AssertionError, match=r"its constraint needs all tokens before the next one"):
        scheduler.schedule(0.0)
