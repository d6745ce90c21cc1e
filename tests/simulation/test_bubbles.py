"""F23: idle time of a pipeline's stages by its reason, on prices that are counted by hand."""

from collections.abc import Callable, Sequence

import pytest

from sarathi_jax.simulation.bubbles import Bubbles, lock_step_bubbles, tick_bubbles
from sarathi_jax.simulation.cost_model import StageCost
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.microbatches import MicrobatchRecorder
from sarathi_jax.simulation.run import simulate
from sarathi_jax.simulation.step_work import ChunkWork, StepWork, decode_work
from sarathi_jax.simulation.workloads import RequestShape

type Make = Callable[..., Deployment]


def price(work: StepWork) -> StageCost:
    """A second a prefill token, and a hundredth for each token that a decode attends to."""
    prefill_s = float(sum(chunk.num_new_tokens for chunk in work.chunks))
    return StageCost(0.0, 0.0, prefill_s, work.decode_context / 100, 0.0, 0.0, 0.0, 0.0, 0.0)


def hybrid(num_tokens: int, context: int) -> StepWork:
    return StepWork((ChunkWork(0, num_tokens),), 1, context)


def pipeline_bubbles(steps: Sequence[StepWork | None], num_stages: int) -> Bubbles:
    """Of steps that enter one a tick, from the first one's entry until the last one has left."""
    waiting: list[StepWork | None] = [None] * (num_stages - 1)
    line = [*waiting, *steps, *waiting]
    ticks = (line[tick : tick + num_stages] for tick in range(len(line) - num_stages + 1))
    return sum((tick_bubbles(tick, price) for tick in ticks), Bubbles())


def test_f23_prefills_of_other_sizes_are_pb1() -> None:
    assert tick_bubbles([hybrid(8, 0), hybrid(5, 0)], price) == Bubbles(busy_s=13, prefill_size_s=3)


def test_f23_a_prefill_beside_decodes_is_pb2() -> None:
    assert tick_bubbles([hybrid(8, 0), decode_work(1, 300)], price) == Bubbles(busy_s=11, prefill_decode_s=5)
    assert tick_bubbles([hybrid(2, 0), decode_work(1, 300)], price) == Bubbles(busy_s=5, prefill_decode_s=1)


def test_f23_decodes_of_other_contexts_are_pb3() -> None:
    assert tick_bubbles([decode_work(1, 400), decode_work(1, 100)], price) == Bubbles(busy_s=5, decode_context_s=3)


def test_f23_what_decodes_explain_of_two_hybrid_steps_is_theirs() -> None:
    both = tick_bubbles([hybrid(8, 400), hybrid(5, 200)], price)
    assert both == Bubbles(busy_s=19, prefill_size_s=3, decode_context_s=2)
    more_decodes_in_the_shorter = tick_bubbles([hybrid(8, 100), hybrid(5, 300)], price)
    assert more_decodes_in_the_shorter == Bubbles(busy_s=17, prefill_size_s=1)
    fewer_tokens_in_the_longer = tick_bubbles([hybrid(5, 900), hybrid(8, 100)], price)
    assert fewer_tokens_in_the_longer == Bubbles(busy_s=23, decode_context_s=5)


def test_a_stage_without_a_microbatch_is_empty() -> None:
    assert tick_bubbles([None, decode_work(1, 200)], price) == Bubbles(busy_s=2, empty_s=2)
    assert tick_bubbles([None, None], price) == Bubbles()


def test_equal_microbatches_leave_no_bubble_but_at_both_ends() -> None:
    """Three microbatches of 2 s on two stages take four ticks of both stages."""
    found = pipeline_bubbles([hybrid(2, 0)] * 3, 2)
    assert found == Bubbles(busy_s=12, empty_s=4)
    assert found.idle_share == pytest.approx(4 / 16)


def test_f23_a_sequence_of_microbatches_has_each_kind() -> None:
    """Ticks: 8; 8 and 5; 5 and 1; 3 and 1; 3. Stage time is two each."""
    steps = [hybrid(8, 0), hybrid(5, 0), decode_work(1, 100), decode_work(1, 300)]
    found = pipeline_bubbles(steps, 2)
    assert found == Bubbles(busy_s=34, prefill_size_s=3, prefill_decode_s=4, decode_context_s=2, empty_s=8 + 3)
    assert found.busy_s + found.idle_s == 2 * (8 + 8 + 5 + 3 + 3)


@pytest.mark.parametrize("host_s", [0.0, 0.4])
def test_f23_every_idle_second_of_a_run_in_lock_step_has_one_reason(make_deployment: Make, host_s: float) -> None:
    """Two stages of a second a token, as `tokens_s` has it. A's prompt (0-4, 4-8) is driven out, B's enters at 8, and their decodes go side by side: busy time is 2 s
    a token, and idle time the pipeline's own count of it."""
    shapes = [RequestShape(0.0, 4, 3), RequestShape(1.0, 2, 3), RequestShape(40.0, 3, 2)]
    deployment, recorder = make_deployment(1.0, 1.0, host_s=host_s), MicrobatchRecorder()
    result = simulate(deployment, shapes, observer=recorder)
    total = lock_step_bubbles(recorder.microbatches, 2, deployment.cost_model.host, token_price)
    assert total.busy_s == 2 * sum(each.work.num_tokens for each in recorder.microbatches)
    assert total.idle_s == pytest.approx(result.idle_s)
    assert total.prefill_decode_s > 0 < total.empty_s
    assert (total.host_s > 0) == (host_s > 0)


def test_f23_a_run_in_lock_step_counted_by_hand(make_deployment: Make) -> None:
    """Ticks: A's prompt alone, twice 4 s; then B's 2 tokens alone (2 s), beside A's decode (2 s, of which 1 idle), that beside B's decode, which is alone at last."""
    deployment, recorder = make_deployment(1.0, 1.0), MicrobatchRecorder()
    simulate(deployment, [RequestShape(0.0, 4, 2), RequestShape(1.0, 2, 2)], observer=recorder)
    total = lock_step_bubbles(recorder.microbatches, 2, deployment.cost_model.host, token_price)
    assert total == Bubbles(busy_s=16, prefill_decode_s=1, empty_s=4 + 4 + 2 + 1)


def token_price(work: StepWork) -> StageCost:
    """A second a token."""
    return StageCost(float(work.num_tokens), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_one_stage_has_no_bubbles() -> None:
    assert pipeline_bubbles([hybrid(8, 0), decode_work(1, 100)], 1).idle_s == 0
    assert pipeline_bubbles([], 2).idle_share == 0
