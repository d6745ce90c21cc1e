"""A simulated deployment profiled as a machine would be, and the `slo` policy that starts from that."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.service_levels import BATCH, INTERACTIVE, ServiceLevel, service_levels
from sarathi_jax.scheduling.step_times import StepTimeModel
from sarathi_jax.simulation.arrivals import with_arrivals
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.lengths import SHAREGPT
from sarathi_jax.simulation.run import simulate
from sarathi_jax.simulation.self_profile import load_of_work, profile_of, slo_maker
from sarathi_jax.simulation.step_work import ChunkWork, StepWork
from sarathi_jax.simulation.workloads import RequestShape, with_classes

type MakeModel = Callable[..., CostModel]
TBT_SLO_S = 0.1


@pytest.fixture(scope="module")
def mistral(cost_model: MakeModel) -> Deployment:
    """Mistral-7B on one A100, as Sarathi-Serve runs it."""
    model = cost_model("mistral-7b", "a100-80g", "pairwise-a100", "sarathi-serve", num_hosts=1, gpus_per_host=1)
    return Deployment(cost_model=model, max_model_len=8192, token_budget=2048, is_overlapped=False)


def test_a_sample_is_a_step_s_time_with_the_host_code_that_it_waits_for(mistral: Deployment) -> None:
    """The plain loop's steps are as long as device and host together, the overlapped one's as the longer of the two."""
    model = mistral.cost_model
    plain, overlapped = profile_of(mistral), profile_of(replace(mistral, is_overlapped=True))
    alone = next(each for each in plain.samples if each.num_tokens == each.num_rows == 64)
    device_s = sum(model.stages_s(StepWork((), 64, alone.decode_context)))
    assert alone.median_s == pytest.approx(device_s + 0.93e-3 + 64 * 0.049e-3)
    same = next(each for each in overlapped.samples if each.load == alone.load)
    assert same.median_s == pytest.approx(device_s)


def test_loads_count_pairs_as_the_cost_model_does() -> None:
    """3 new tokens after 10: 3 x (10 + 1.5); 2 decodes."""
    load = load_of_work(StepWork((ChunkWork(10, 3),), 2, 50))
    assert load == (5, 3, 2, 50, pytest.approx(34.5))


def test_the_fitted_model_predicts_steps_that_it_has_not_seen(mistral: Deployment) -> None:
    """The cost model blends memory and compute time, the fitted one is a table and three straight lines: within 5 % on random hybrid steps."""
    times = StepTimeModel.fit(profile_of(mistral))
    rng = np.random.default_rng(0)
    errors: list[float] = []
    for _ in range(200):
        num_decodes, chunk = int(rng.integers(1, 128)), int(rng.integers(1, 1900))
        work = StepWork(
            (ChunkWork(int(rng.integers(0, 6000)), chunk),), num_decodes, num_decodes * int(rng.integers(1, 3000))
        )
        measured_s = sum(mistral.cost_model.stages_s(work)) + mistral.cost_model.host.seconds(work.num_rows)
        errors.append(abs(times.seconds(load_of_work(work)) / measured_s - 1))
    assert np.median(errors) < 0.05


def test_every_run_gets_a_policy_of_its_own(mistral: Deployment) -> None:
    make = slo_maker(mistral, service_levels(TBT_SLO_S))
    one, other = make(), make()
    assert isinstance(one, SloPolicy) and isinstance(other, SloPolicy)
    assert one is not other and one.times is not other.times


def test_f30_slo_keeps_the_goal_where_a_wrong_budget_does_not_and_answers_sooner_than_a_careful_one(
    mistral: Deployment,
) -> None:
    """Mistral-7B at 2.4 requests a second: with the paper's 512 the goal is kept, with 2,048 it is not; `slo` is told of neither."""
    shapes = with_arrivals(SHAREGPT.draw(150, 0), 2.4, 0)
    careful = simulate(replace(mistral, token_budget=512), shapes)
    wrong = simulate(mistral, shapes)
    slo = simulate(replace(mistral, policy=slo_maker(mistral, service_levels(TBT_SLO_S))), shapes)
    p99 = [float(np.quantile(each.tbt_s, 0.99)) for each in (careful, wrong, slo)]
    assert p99[0] <= TBT_SLO_S < p99[1] and p99[2] <= TBT_SLO_S
    assert np.median(slo.ttft_s) < 0.75 * np.median(careful.ttft_s)
    assert np.quantile(slo.ttft_s, 0.99) <= 1.1 * np.quantile(careful.ttft_s, 0.99)
    assert slo.backlog_drift <= 1.1 * careful.backlog_drift


def test_classes_of_a_workload_reach_the_policy(mistral: Deployment) -> None:
    """Two prompts wait; the interactive one goes first, though it came last."""
    levels = {
        INTERACTIVE: ServiceLevel(tbt_slo_s=0.1, ttft_slo_s=2.0),  # so late that it is not lost
        BATCH: ServiceLevel(tbt_slo_s=1.0, ttft_slo_s=60.0),
    }
    shapes = [
        RequestShape(0.0, 8000, 4),
        RequestShape(0.01, 6000, 4, slo_class=BATCH),
        RequestShape(0.02, 6000, 4, slo_class=INTERACTIVE),
    ]
    result = simulate(replace(mistral, policy=slo_maker(mistral, levels), max_num_seqs=8), shapes)
    batch, interactive = result.requests[1], result.requests[2]
    assert interactive.token_times_s[0] < batch.token_times_s[0]
    assert {shape.slo_class for shape in with_classes(shapes, {BATCH: 1.0}, 0)} == {BATCH}
