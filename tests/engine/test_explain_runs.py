"""`explain` over whole runs of an engine on a fake device: what it says agrees with what the engine's outputs and schedules say."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.engine.explain import explain
from sarathi_jax.engine.flight_record import read_record
from sarathi_jax.engine.stalls import stalls_by_request
from sarathi_jax.sampling_params import SamplingParams


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    "options", [{"num_pages": 32}, {"policy": "vllm", "token_budget": 128}, {"num_microbatches": 3}], ids=str
)
def test_shares_add_up_to_every_gap_of_a_random_run(
    make_rig: Callable[..., Any],
    random_run: Callable[..., dict[str, Any]],
    tokenizer: Any,
    tmp_path: Path,
    options: dict[str, Any],
    overlap: bool,
):
    """With failures and steps of all lengths. Gaps and waits are the ones that the outputs' metrics have, and stalls those that the schedules show."""
    rig = make_rig(overlap=overlap, tokenizer=tokenizer, **options)
    rig.executor.failing_steps = {30, 80}
    rng = random.Random(0)
    schedule = rig.engine.scheduler.schedule

    def take_some_time(now_s: float) -> Any:
        rig.executor.step_s = rng.choice([0.5, 1.0, 1.0, 4.0])
        rig.clock.advance(rng.choice([0.0, 0.25]))
        return schedule(now_s)

    rig.engine.scheduler.schedule = take_some_time
    outputs = random_run(rig, 3, 36)
    rig.engine.recorder.dump(tmp_path / "flight.jsonl")
    record = read_record(tmp_path / "flight.jsonl")
    num_gaps = 0
    for request_id, output in outputs.items():
        for sample in output.outputs:
            name = f"{request_id}-{sample.index}" if sample.index else request_id
            found = explain(record, name, slo_s=-1.0)
            assert [token.gap_s for token in found.late] == sample.metrics.tbt_s
            for token in found.late:
                assert sum(cause.seconds for cause in token.causes) == pytest.approx(token.gap_s, abs=1e-7)
            num_gaps += len(found.late)
            if found.first_token is not None:
                waited_s = sum(reason.seconds for reason in found.queue)
                shares_s = sum(cause.seconds for cause in found.first_token.causes)
                assert waited_s + shares_s == pytest.approx(sample.metrics.ttft_s, abs=1e-7)
    assert num_gaps > 200


@pytest.mark.parametrize("policy", ["vllm", "alternating", "sarathi"])
def test_stalls_are_those_that_the_schedules_show(make_rig: Callable[..., Any], tmp_path: Path, policy: str):
    """f2: the steps of a decode's gaps that left it out, against a count over the schedules themselves."""
    rig = make_rig(policy=policy, token_budget=128)
    for number in range(24):
        rig.engine.add_request(
            [number] * (1 + 5 * (number % 7)), SamplingParams(max_tokens=12, seed=1), request_id=str(number)
        )
        for _ in range(number % 5):
            rig.engine.step()
    rig.drain()
    rig.engine.recorder.dump(tmp_path / "flight.jsonl")
    record = read_record(tmp_path / "flight.jsonl")
    stalls = {
        name: len(
            {
                step
                for token in explain(record, name, slo_s=-1.0).late
                for cause in token.causes
                if cause.kind == "stall"
                for step in cause.steps
            }
        )
        for name in map(str, range(24))
    }
    assert {name: count for name, count in stalls.items() if count} == stalls_by_request(rig.executor.schedules)
    assert (sum(stalls.values()) > 0) == (policy != "sarathi")
