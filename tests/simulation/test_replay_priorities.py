"""A recorded run whose requests have priorities is replayed with the same decisions, which are others without them."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.flight_record import FlightRecord, read_record
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.loop import StepLoop
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.pipelines import StagesInLockStep
from sarathi_jax.simulation.replay import replay
from sarathi_jax.simulation.simulated_executor import SimulatedExecutor


class NoHost:
    def seconds(self, num_rows: int) -> float:
        del num_rows
        return 1e-4


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_priorities_are_replayed(policy: str, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"num_pages": 40, "page_size": 8, "token_budget": 256, "max_num_seqs": 8}
    scheduler = Scheduler(policy, max_model_len=160, vocab_size=1000, **limits)
    clock, rng, host = VirtualClock(), random.Random(1), NoHost()

    def prices(work: Any) -> list[float]:
        return [1e-3 + 2e-4 * work.num_tokens]

    executor = SimulatedExecutor(clock, prices, host, StagesInLockStep(1))  # pyright: ignore[reportArgumentType]
    loop = StepLoop(scheduler, executor, clock, is_overlapped=True)
    recorder = loop.recorder = FlightRecorder(scheduler, clock, max_events=10**6, is_overlapped=True)
    for number in range(80):
        request = Request(
            str(number),
            [rng.randrange(1000) for _ in range(rng.choice([5, 40, 90]))],
            SamplingParams(ignore_eos=True, temperature=0.0),
            arrival_s=clock.now(),
            seed=0,
            max_tokens=rng.randint(1, 60),
            priority=rng.choice([-(2**63), 0, 0, 1, 2**63 - 1]),
        )
        recorder.arrived(scheduler.add(request))
        for _ in range(rng.choice([0, 0, 1, 5, 20])):
            if not loop.is_idle:
                loop.step()
    while not loop.is_idle:
        loop.step()
    recorder.dump(tmp_path / "flight.jsonl.gz")
    record = read_record(tmp_path / "flight.jsonl.gz")
    assert {facts.priority for facts in record.requests.values()} == {-(2**63), 0, 1, 2**63 - 1}
    assert replay(record).difference is None
    forgotten = {number: msgspec.structs.replace(facts, priority=0) for number, facts in record.requests.items()}
    assert replay(FlightRecord(record.header, forgotten, record.events)).difference is not None
