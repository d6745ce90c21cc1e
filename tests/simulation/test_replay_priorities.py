"""A recorded run whose requests have priorities is replayed with the same decisions, which are others without them."""

import random
from typing import Any

import msgspec
import pytest

from sarathi_jax.engine.flight_record import FlightRecord
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.replay import replay


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_priorities_are_replayed(policy: str, record_run: Any) -> None:
    limits: dict[str, Any] = {"num_pages": 40, "page_size": 8, "token_budget": 256, "max_num_seqs": 8}
    scheduler, rng = Scheduler(policy, max_model_len=160, vocab_size=1000, **limits), random.Random(1)

    def make(number: int, arrival_s: float) -> Request:
        return Request(
            str(number),
            [rng.randrange(1000) for _ in range(rng.choice([5, 40, 90]))],
            SamplingParams(ignore_eos=True, temperature=0.0),
            arrival_s=arrival_s,
            seed=0,
            max_tokens=rng.randint(1, 60),
            priority=rng.choice([-(2**63), 0, 0, 1, 2**63 - 1]),
        )

    record = record_run(scheduler, rng, 80, make, lambda work: [1e-3 + 2e-4 * work.num_tokens])
    assert {facts.priority for facts in record.requests.values()} == {-(2**63), 0, 1, 2**63 - 1}
    assert replay(record).difference is None
    forgotten = {number: msgspec.structs.replace(facts, priority=0) for number, facts in record.requests.items()}
    assert replay(FlightRecord(record.header, forgotten, record.events)).difference is not None
