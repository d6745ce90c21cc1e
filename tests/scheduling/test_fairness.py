"""Fair shares among clients under the `slo` policy: what a token of a prompt counts is 1, of an output 2 (Sheng et al., arXiv 2401.00588).

Two clients that have requests waiting all the time are served alike but for 2 max(longest prompt, 2 x tokens that run at a time), as is proved there. Here a prompt has
100 tokens and an output 20, and four run at a time: 2 max(100, 2 * 4 * 120) = 1920.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sarathi_jax.scheduling import fairness
from sarathi_jax.scheduling.fairness import ClientShares
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.service_levels import service_levels

Make = Callable[..., Any]
BOUND = 1920


@pytest.fixture
def requests_of(make_request: Make) -> Callable[..., list[Request]]:
    def make(client: str, count: int, arrival_s: float = 0.0, gap_s: float = 0.0) -> list[Request]:
        return [
            make_request(f"{client}-{arrival_s}-{index}", 100, 20, client=client, arrival_s=arrival_s + index * gap_s)
            for index in range(count)
        ]

    return make


@pytest.fixture
def fair_machine(make_machine: Make, line_times: Make) -> Callable[..., Any]:
    def make(*late: Request, is_fair: bool = True) -> Any:
        policy = SloPolicy(line_times(), service_levels(0.05), is_fair=is_fair)
        return make_machine(policy, late, max_num_seqs=4, token_budget=256)

    return make


def served(schedule: Schedule) -> Counter[str]:
    """Weighted tokens by client, from the rows."""
    counts = Counter[str]()
    for row in schedule.rows:
        is_output = row.start >= row.num_prompt_tokens
        counts[row.request_id.split("-")[0]] += row.num_tokens * (2 if is_output else 1)
    return counts


def largest_lead(machine: Any, one: str, other: str) -> int:
    """By how much one client was served more than the other at most, in any stretch of steps in which both had requests waiting."""
    lead, largest = 0, 0
    while True:
        machine.step()
        waiting = {request.client for request in machine.scheduler.view(machine.now_s).waiting}
        if not {one, other} <= waiting:
            return largest
        counts = served(machine.ran[-1].schedule)
        lead = max(lead + counts[one] - counts[other], 0)
        largest = max(largest, lead)


@pytest.mark.parametrize("pair", ["ab", "ba"])
def test_two_clients_that_wait_are_served_alike_though_one_came_with_a_flood_first(
    pair: str, requests_of: Make, fair_machine: Make
):
    assert largest_lead(fair_machine(*requests_of("a", 40), *requests_of("b", 40)), *pair) <= BOUND


def test_without_fair_shares_the_flood_is_served_first(requests_of: Make, fair_machine: Make):
    machine = fair_machine(*requests_of("a", 40), *requests_of("b", 40), is_fair=False)
    assert largest_lead(machine, "a", "b") > BOUND


def test_who_was_idle_has_earned_nothing(requests_of: Make, fair_machine: Make):
    """ "b" comes when "a" has been served alone for long: from then on they are served alike, and "b" makes up for nothing."""
    machine = fair_machine(*requests_of("a", 120))
    for _ in range(300):
        machine.step()
    assert sum((served(ran.schedule) for ran in machine.ran), Counter())["a"] > 3 * BOUND
    machine.add(*requests_of("b", 40, machine.now_s))
    assert largest_lead(machine, "b", "a") <= BOUND


def test_who_asked_for_little_has_earned_nothing(requests_of: Make, fair_machine: Make):
    """ "b" has one request at a time, which never waits, while "a" floods; then "b" floods too."""
    machine = fair_machine(*requests_of("a", 120))
    for number in range(20):
        machine.add(*requests_of("b", 1, machine.now_s))
        for _ in range(10):
            machine.step()
        assert number == 0 or any("b-" in row.request_id for ran in machine.ran[-10:] for row in ran.schedule.rows)
    totals = sum((served(ran.schedule) for ran in machine.ran), Counter[str]())
    assert totals["a"] - totals["b"] > 0
    machine.add(*requests_of("b", 40, machine.now_s))
    assert largest_lead(machine, "b", "a") <= BOUND


def test_a_client_alone_gets_everything(requests_of: Make, fair_machine: Make):
    """Work-conserving: the same steps as without fair shares, and as long as anybody waits all four slots are taken."""
    ran = fair_machine(*requests_of("a", 30)).drain()
    assert [each.schedule.num_tokens for each in ran] == [
        each.schedule.num_tokens for each in fair_machine(*requests_of("a", 30), is_fair=False).drain()
    ]


def test_a_single_request_is_next_behind_hundreds_of_another_client(requests_of: Make, fair_machine: Make):
    machine = fair_machine(*requests_of("a", 400))
    for _ in range(30):
        machine.step()
    machine.add(*requests_of("b", 1, machine.now_s))
    while not (admitted := [row.request_id[0] for row in machine.step().schedule.rows if row.is_first]):
        assert len(machine.ran) < 60
    assert admitted[0] == "b"


def test_no_decode_is_left_out_for_a_fair_share(requests_of: Make, fair_machine: Make):
    for ran in fair_machine(*requests_of("a", 40), *requests_of("b", 20, 0.1, 0.05)).drain():
        assert ran.decodes <= {row.request_id for row in ran.schedule.rows}


# ---- the counters by themselves


def test_who_returns_is_lifted_to_the_least_of_those_that_wait(requests_of: Make, fair_machine: Make):
    shares = fair_machine().policy._shares
    assert isinstance(shares, ClientShares)
    shares._served = {"a": 500.0, "b": 300.0, "c": 100.0, "d": 900.0}
    shares.returned("c", ["a", "b"])
    shares.returned("d", ["a", "b"])
    shares.returned("new", ["a", "b"])
    assert [shares.served(name) for name in ("c", "d", "new")] == [300.0, 900.0, 300.0]


def test_if_nobody_waits_to_the_one_that_was_admitted_last(requests_of: Make, fair_machine: Make):
    machine = fair_machine(*requests_of("a", 1))
    machine.drain()
    machine.add(*requests_of("b", 1, machine.now_s))
    # 100 tokens of a prompt and the 19 steps after it, which each computed one of the output.
    assert machine.policy._shares.served("b") == machine.policy._shares.served("a") == 100 + 2 * 19


def test_clients_of_whom_nothing_has_to_be_remembered_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fairness, "MAX_IDLE_CLIENTS", 10)
    shares = ClientShares()
    shares._served = {"ahead": 50.0, "waiting": 9.0} | {str(index): 1.0 for index in range(20)}
    shares.returned("new", ["waiting"])
    assert shares._served == {"ahead": 50.0, "new": 9.0} and shares.served("waiting") == shares.served("3") == 9.0
