"""A recorded run under the policy that learns is replayed from what it was made with and what it knew of step times."""

import random
from typing import Any

import msgspec
import pytest

from sarathi_jax.engine.flight_record import FlightRecord
from sarathi_jax.errors import ConfigError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies.recorded import policy_from, policy_options
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.service_levels import service_levels
from sarathi_jax.scheduling.step_times import StepLoad, StepTimeModel
from sarathi_jax.simulation.replay import replay


def learned_times() -> StepTimeModel:
    """Of a machine that is slower than was guessed, at one size more than at others."""
    times = StepTimeModel.guess()
    for number in range(30):
        times.observe(StepLoad(64, 4, 3, 600, 2000.0), 0.02 + 1e-4 * number)
        times.observe(StepLoad(8, 8, 8, 900, 0.0), 0.005)
    return times


@pytest.fixture
def record(record_run: Any) -> FlightRecord:
    """150 requests of three clients and both classes, whose steps take about a millisecond and 0.2 more a token."""
    policy = SloPolicy(learned_times(), service_levels(0.02, ttft_slo_s=0.4), sizes=(32, 64, 128), is_fair=True)
    limits: dict[str, Any] = {"num_pages": 70, "page_size": 8, "token_budget": 128, "max_num_seqs": 16}
    scheduler, rng = Scheduler(policy, max_model_len=400, vocab_size=1000, **limits), random.Random(0)

    def prices(work: Any) -> list[float]:
        return [(1e-3 + 2e-4 * work.num_tokens) * rng.choice([0.8, 1.0, 1.0, 1.3])]

    def make(number: int, arrival_s: float) -> Request:
        return Request(
            str(number),
            [rng.randrange(1000) for _ in range(rng.choice([5, 40, 300]))],
            SamplingParams(ignore_eos=True, temperature=0.0),
            arrival_s=arrival_s,
            seed=0,
            max_tokens=rng.randint(1, 40),
            slo_class=rng.choice(["interactive", "batch"]),
            client=rng.choice(["", "ann", "bob"]),
        )

    return record_run(scheduler, rng, 150, make, prices)


def test_what_it_learned_and_was_promised_is_replayed(record: FlightRecord):
    found = replay(record)
    assert found.difference is None and found.num_steps > 300 and found.num_preemptions > 0
    assert {facts.slo_class for facts in record.requests.values()} == {"interactive", "batch"}
    assert {facts.client for facts in record.requests.values()} == {0, 1, 2}


@pytest.mark.parametrize("forgotten", ["times", "levels", "sizes", "is_fair", "clients", "classes"])
def test_each_of_it_is_needed(record: FlightRecord, forgotten: str):
    """Without one of them other decisions come out: so the record has to have it."""
    plain = policy_options(SloPolicy())
    options, facts = dict(record.header.policy_options), dict[str, Any]()
    if forgotten in ("clients", "classes"):
        facts = {"client": 0} if forgotten == "clients" else {"slo_class": "interactive"}
    else:
        options[forgotten] = plain[forgotten]
    header = msgspec.structs.replace(record.header, policy_options=options)
    requests = {number: msgspec.structs.replace(each, **facts) for number, each in record.requests.items()}
    assert replay(FlightRecord(header, requests, record.events)).difference is not None


def test_options_that_are_none_are_a_users_error(record: FlightRecord):
    header = msgspec.structs.replace(record.header, policy_options={"times": 3})
    with pytest.raises(ConfigError, match=r"policy options must be those of 'slo', got .*: replay with the version"):
        replay(FlightRecord(header, record.requests, record.events))


def test_a_model_that_is_made_again_says_and_learns_the_same():
    times = learned_times()
    again = policy_from("slo", msgspec.json.decode(msgspec.json.encode(policy_options(SloPolicy(times)))))
    assert isinstance(again, SloPolicy)
    loads = [StepLoad(64, 4, 3, 600, 2000.0), StepLoad(8, 8, 8, 900, 0.0), StepLoad(9000, 40, 3, 600, 2e6)]
    for number in range(40):
        load = loads[number % 3]
        assert again.times.seconds(load) == times.seconds(load)
        for each in (again.times, times):
            each.observe(load, 0.01 + 1e-3 * number)
