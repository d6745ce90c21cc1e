"""F23: idle time of a pipeline's stages by its reason, on prices that are counted by hand."""

import pytest

from sarathi_jax.simulation.bubbles import Bubbles, pipeline_bubbles, tick_bubbles
from sarathi_jax.simulation.cost_model import StageCost
from sarathi_jax.simulation.step_work import ChunkWork, StepWork, decode_work


def price(work: StepWork) -> StageCost:
    """A second a prefill token, and a hundredth for each token that a decode attends to."""
    prefill_s = float(sum(chunk.num_new_tokens for chunk in work.chunks))
    return StageCost(0.0, 0.0, prefill_s, work.decode_context / 100, 0.0, 0.0, 0.0, 0.0, 0.0)


def hybrid(num_tokens: int, context: int) -> StepWork:
    return StepWork((ChunkWork(0, num_tokens),), 1, context)


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
    found = pipeline_bubbles([hybrid(2, 0)] * 3, 2, price)
    assert found == Bubbles(busy_s=12, empty_s=4)
    assert found.idle_share == pytest.approx(4 / 16)


def test_f23_a_sequence_of_microbatches_has_each_kind() -> None:
    """Ticks: 8; 8 and 5; 5 and 1; 3 and 1; 3. Stage time is two each."""
    steps = [hybrid(8, 0), hybrid(5, 0), decode_work(1, 100), decode_work(1, 300)]
    found = pipeline_bubbles(steps, 2, price)
    assert found == Bubbles(busy_s=34, prefill_size_s=3, prefill_decode_s=4, decode_context_s=2, empty_s=8 + 3)
    assert found.busy_s + found.idle_s == 2 * (8 + 8 + 5 + 3 + 3)


def test_one_stage_has_no_bubbles() -> None:
    assert pipeline_bubbles([hybrid(8, 0), decode_work(1, 100)], 1, price).idle_s == 0
    assert pipeline_bubbles([], 2, price).idle_share == 0
