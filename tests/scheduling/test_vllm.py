"""F27: prompts first and whole, decodes only when no prompt can be let in."""

from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.scheduling.schedule import Schedule

Make = Callable[..., Any]
PLAIN = {"policy": "vllm", "token_budget": 32, "max_model_len": 32, "is_prefix_caching": False}


def chunks(schedule: Schedule) -> str:
    return " ".join(f"{row.request_id}{row.num_tokens}" for row in schedule.rows)


def test_f27_prompts_that_do_not_fit_together_stall_decodes_one_after_another(
    make_request: Make, make_stepper: Make
) -> None:
    stepper = make_stepper(make_request("A", 4), **PLAIN)
    stepper.step()
    for name, num_prompt_tokens in (("C", 24), ("D", 9), ("E", 20)):
        stepper.scheduler.add(make_request(name, num_prompt_tokens))
    assert [chunks(stepper.step()[0]) for _ in range(3)] == ["C24", "D9 E20", "A1 C1 D1 E1"]


@pytest.mark.parametrize(("is_blocking", "expected"), [(True, "A20"), (False, "A20 C8")])
def test_f26_a_head_that_the_budget_does_not_hold_blocks_unless_switched_off(
    is_blocking: bool, expected: str, make_request: Make, make_stepper: Make
) -> None:
    requests = [make_request("A", 20), make_request("B", 20), make_request("C", 8)]
    stepper = make_stepper(*requests, is_head_of_line_blocking=is_blocking, **PLAIN)
    assert chunks(stepper.step()[0]) == expected


@pytest.mark.parametrize(("num_prompt_tokens", "expected"), [(8, "B8"), (9, "A1")])
def test_f25_an_admission_leaves_the_watermark(
    num_prompt_tokens: int, expected: str, make_request: Make, make_stepper: Make
) -> None:
    """10 pages, of which "A" has 7, and 1 stays free: 2 are left. When "B" does not come in, "A" decodes."""
    stepper = make_stepper(make_request("A", 24), **PLAIN, num_pages=10, watermark=0.1)
    for _ in range(2):
        stepper.step()
    stepper.scheduler.add(make_request("B", num_prompt_tokens))
    assert chunks(stepper.step()[0]) == expected


def test_f25_f27_the_youngest_is_preempted_and_read_again_whole(make_request: Make, make_stepper: Make) -> None:
    """6 pages of 4. Both prompts fill 3; A's second decode takes no page, since B has to go, which then waits for A's end."""
    requests = [make_request(name, 11, max_tokens=6) for name in "AB"]
    stepper = make_stepper(*requests, **PLAIN, num_pages=6, watermark=0.0)
    schedules = [stepper.step()[0] for _ in range(9)]
    assert [chunks(each) for each in schedules] == [
        "A11 B11", "A1 B1", "A1", "A1", "A1", "A1", "B13", "B1", "B1",
    ]  # fmt: skip
    assert [each.preempted_request_ids for each in schedules] == [(), (), ("B",), *[()] * 6]


def test_f27_thresholds_for_chunks_do_not_split_a_prompt(make_request: Make, make_stepper: Make) -> None:
    stepper = make_stepper(make_request("A", 20), **PLAIN, long_prefill_token_threshold=4, max_num_partial_prefills=1)
    assert chunks(stepper.step()[0]) == "A20"


def test_f27_what_the_cache_holds_takes_no_budget(make_request: Make, make_stepper: Make) -> None:
    """Two prompts of 24 tokens do not fit into 32, but of the second one only 4 are new."""
    stepper = make_stepper(make_request("A", 24, max_tokens=1), **{**PLAIN, "is_prefix_caching": True})
    stepper.step()
    stepper.scheduler.add(make_request("B", 24))
    stepper.scheduler.add(make_request("C", [9] * 24))
    assert chunks(stepper.step()[0]) == "B4 C24"
