"""F23: idle time of stages that run in series by its reason, and F22's bubble time of a request, on time lines that are counted by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from sarathi_jax.simulation.bubbles import Bubbles
from sarathi_jax.simulation.cost_model import StageCost
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.hardware import HostCost
from sarathi_jax.simulation.microbatches import Microbatch, MicrobatchRecorder
from sarathi_jax.simulation.pipelines import Passage
from sarathi_jax.simulation.run import simulate
from sarathi_jax.simulation.series_bubbles import request_bubbles_s, series_bubbles
from sarathi_jax.simulation.step_work import ChunkWork, StepWork, decode_work
from sarathi_jax.simulation.workloads import RequestShape

type Make = Callable[..., Deployment]
FREE = HostCost("free", 0.0, 0.0, is_overlapped=False)


def price(work: StepWork) -> StageCost:
    """A second a prefill token, and a hundredth for each token that a decode attends to."""
    prefill_s = float(sum(chunk.num_new_tokens for chunk in work.chunks))
    return StageCost(0.0, 0.0, prefill_s, work.decode_context / 100, 0.0, 0.0, 0.0, 0.0, 0.0)


def hybrid(num_tokens: int, context: int = 0) -> StepWork:
    return StepWork((ChunkWork(0, num_tokens),), 1, context)


def two_stages(*works: StepWork, ready_s: float = 0.0, host: HostCost = FREE) -> list[Bubbles]:
    """Of microbatches that are there one as soon as may be, but the last not before ready_s."""
    microbatches: list[Microbatch] = []
    first_s = second_s = 0.0
    for index, work in enumerate(works):
        seconds = price(work).seconds
        oldest_s = microbatches[index - 2].passage.done_s if index >= 2 else 0.0
        waits_s = max(first_s, oldest_s or 0.0, ready_s if index == len(works) - 1 else 0.0)
        ready = waits_s + host.seconds(work.num_rows)
        starts = [ready, max(ready + seconds, second_s)]
        first_s, second_s = starts[0] + seconds, starts[1] + seconds
        microbatches.append(Microbatch((str(index),), work, Passage((seconds, seconds), ready, starts, second_s)))
    return series_bubbles(microbatches, 2, host, price)


def test_f23_equal_microbatches_leave_no_bubble() -> None:
    assert two_stages(*[hybrid(4)] * 5) == [Bubbles(busy_s=8)] * 5


def test_f23_a_larger_prefill_behind_a_smaller_one_is_pb1_of_the_second_stage() -> None:
    """Stage 0 runs 0-2 and 2-7; stage 1 2-4, and then waits for 7."""
    assert two_stages(hybrid(2), hybrid(5)) == [Bubbles(busy_s=4), Bubbles(busy_s=10, prefill_size_s=3)]


def test_f23_a_smaller_prefill_behind_a_larger_one_is_pb1_of_the_first_stage() -> None:
    """Stage 0 runs 0-5, 5-7, and is free until the first has left stage 1 (5-10); the third is as large as the second."""
    bubbles = two_stages(hybrid(5), hybrid(2), hybrid(2))
    assert bubbles[1:] == [Bubbles(busy_s=4), Bubbles(busy_s=4, prefill_size_s=3)]


def test_f23_decodes_beside_a_prefill_are_pb2() -> None:
    """Stage 1 has run decodes (1-2) and waits for a prefill (1-6 in stage 0)."""
    assert two_stages(decode_work(1, 100), hybrid(5))[1] == Bubbles(busy_s=10, prefill_decode_s=4)


def test_f23_decodes_of_other_contexts_are_pb3() -> None:
    assert two_stages(decode_work(1, 100), decode_work(1, 400))[1] == Bubbles(busy_s=8, decode_context_s=3)


def test_f23_what_decodes_explain_of_two_hybrid_steps_is_theirs() -> None:
    """5 s and 10 s, 2 of the difference because of decodes."""
    bubbles = two_stages(hybrid(4, 100), hybrid(7, 300))
    assert bubbles[1] == Bubbles(busy_s=20, prefill_size_s=3, decode_context_s=2)


def test_f23_while_nobody_is_there_to_run_stages_are_empty() -> None:
    """Stages have ended at 2 and 4 when the next one comes at 9, and at 11 to stage 1. Of one that is larger by 3, stage 1 waits for 3 s more, and that is PB1."""
    assert two_stages(hybrid(2), hybrid(2), ready_s=9.0)[1] == Bubbles(busy_s=4, empty_s=7 + 7)
    assert two_stages(hybrid(2), hybrid(5), ready_s=9.0)[1] == Bubbles(busy_s=10, empty_s=7 + 7, prefill_size_s=3)


def test_f23_host_code_is_told_apart() -> None:
    """A second of it before each microbatch: stage 0 runs 1-3, 4-6 and stage 1 3-5, 6-8."""
    bubbles = two_stages(hybrid(2), hybrid(2), host=HostCost("slow", 1.0, 0.0, is_overlapped=False))
    assert bubbles[1] == Bubbles(busy_s=4, host_s=1 + 1)


def test_f22_bubbles_of_a_request_are_those_before_its_microbatches() -> None:
    passage = Passage((1.0,), 0.0, [0.0], 1.0)
    microbatches = [Microbatch(names, hybrid(1), passage) for names in (("a", "b"), ("b",), ("a", "c"))]
    bubbles = [
        Bubbles(prefill_size_s=1.0, empty_s=9.0),
        Bubbles(prefill_decode_s=2.0),
        Bubbles(decode_context_s=4.0, host_s=9.0),
    ]
    assert request_bubbles_s(microbatches, bubbles).tolist() == [5, 3, 4]


@pytest.mark.parametrize("host_s", [0.0, 0.3])
def test_f23_every_idle_second_of_a_run_has_one_reason(make_deployment: Make, host_s: float) -> None:
    rng = np.random.default_rng(2)
    shapes = [RequestShape(at, *rng.integers(1, 12, 2).tolist()) for at in np.cumsum(rng.exponential(9.0, 60)).tolist()]
    deployment, recorder = make_deployment(1.0, 1.5, 0.5, host_s=host_s, has_lock_step=False), MicrobatchRecorder()
    result = simulate(deployment, shapes, observer=recorder)
    total = sum(series_bubbles(recorder.microbatches, 3, deployment.cost_model.host, price), Bubbles())
    assert total.idle_s == pytest.approx(result.idle_s)
    assert total.busy_s == pytest.approx(3.0 * sum(each.work.num_tokens for each in recorder.microbatches))
    assert min(total.prefill_size_s, total.prefill_decode_s, total.empty_s) > 0
    assert (total.host_s > 0) == (host_s > 0)
