"""Several samples of one prompt: the first reads it, the others share its pages, each ends by itself."""

from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.mark.parametrize("is_prefix_caching", [True, False])
def test_samples_wait_for_the_prompt_and_share_its_pages(
    is_prefix_caching: bool, make_request: Make, make_stepper: Make
) -> None:
    stepper = make_stepper(is_prefix_caching=is_prefix_caching)
    samples = stepper.scheduler.add(make_request("a", 18, n=3))
    assert [len(stepper.step()[0].rows) for _ in range(2)] == [1, 1]
    rows = stepper.step()[0].rows
    assert [(row.request_id, row.start, row.num_tokens) for row in rows] == [
        ("a", 18, 1),
        ("a-1", 16, 2),
        ("a-2", 16, 2),
    ]
    assert len({row.block_table[3] for row in rows}) == 1
    assert [sample.num_prefix_hit_tokens for sample in samples] == [0, 16, 16]


def test_samples_have_ids_indices_and_seeds_of_their_own(make_request: Make, make_scheduler: Make) -> None:
    request = make_request("a", 3, n=3, prompt_logprobs=1)
    request.seed = 2**63 - 2
    samples = make_scheduler().add(request)
    assert [(sample.request_id, sample.sample_index) for sample in samples] == [("a", 0), ("a-1", 1), ("a-2", 2)]
    assert [sample.seed for sample in samples] == [2**63 - 2, 2**63 - 1, 0]
    assert [sample.sampling.prompt_logprobs for sample in samples] == [1, None, None]


def test_samples_enter_at_the_front_in_order(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 3, n=3), make_request("b", 20), token_budget=4, max_num_seqs=2)
    stepper.step()
    assert [request.request_id for request in stepper.scheduler.view(0.0).waiting] == ["a-1", "a-2"] + ["b"] * (
        stepper.scheduler.get("b").batch_slot is None
    )


def test_without_prefix_caching_only_the_group_shares_and_pages_go_with_it(
    make_request: Make, make_stepper: Make
) -> None:
    stepper = make_stepper(make_request("a", 12, n=2, max_tokens=2), is_prefix_caching=False)
    stepper.drain()
    assert len(stepper.scheduler.kv_pages.cache) == 0
    assert stepper.scheduler.kv_pages.pool.num_idle == 0
    samples = stepper.scheduler.add(make_request("a", 12, n=2, max_tokens=2))
    stepper.drain()
    assert [sample.num_prefix_hit_tokens for sample in samples] == [0, 8]


def test_the_first_id_aborts_all_samples(make_request: Make, make_stepper: Make) -> None:
    for num_steps in (0, 1, 2):
        stepper = make_stepper(make_request("a", 18, n=3))
        for _ in range(num_steps):
            stepper.step()
        assert [sample.request_id for sample in stepper.scheduler.abort("a")] == ["a", "a-1", "a-2"]
        stepper.scheduler.check_integrity()
        assert (stepper.scheduler.has_unfinished, stepper.scheduler.abort("a")) == (False, [])


@pytest.mark.parametrize("aborted", ["a-1", "a-2"])
def test_another_id_aborts_that_sample_alone(aborted: str, make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper()
    samples = stepper.scheduler.add(make_request("a", 18, n=3, max_tokens=4))
    assert [sample.request_id for sample in stepper.scheduler.abort(aborted)] == [aborted]
    stepper.drain()
    assert {sample.request_id: len(sample.output_token_ids) for sample in samples} == {"a": 4, "a-1": 4, "a-2": 4} | {
        aborted: 0
    }


def test_samples_go_on_without_their_leader(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper()
    samples = stepper.scheduler.add(make_request("a", 18, n=3, max_tokens=4))
    stepper.step()
    assert stepper.scheduler.finish("a", "error")
    stepper.drain()
    assert [sample.finish_reason for sample in samples] == ["error", "length", "length"]


def test_samples_stay_parked_while_their_leader_has_lost_the_prompt(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("a", 8, n=2), is_prefix_caching=False, preempt_every_steps=2)
    schedule = stepper.scheduler.schedule(0.0)
    assert stepper.scheduler.schedule(0.0) is None
    stepper.complete(schedule)
    assert [row.request_id for row in stepper.step()[0].rows] == ["a"]
    assert [(row.request_id, row.start) for row in stepper.step()[0].rows] == [("a", 9), ("a-1", 4)]
