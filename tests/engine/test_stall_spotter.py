"""Stalls as the flight recorder counts them while an engine runs, against their definition on the schedules of the whole run."""

import random
from array import array
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sarathi_jax.engine.stall_spotter import StallSpotter
from sarathi_jax.engine.stalls import stalls_by_request
from sarathi_jax.engine.step_notes import Decodes, StepNote
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies.sarathi import SarathiPolicy
from sarathi_jax.scheduling.policy import Plan, View
from sarathi_jax.scheduling.request import Request, RequestState
from sarathi_jax.scheduling.scheduler import Scheduler

type MakeRig = Callable[..., Any]
type Choose = Callable[[int, Sequence[Request]], Sequence[Request]]

ROOMY = {"num_pages": 400, "page_size": 4, "max_num_seqs": 12, "token_budget": 96, "max_model_len": 96}


class Without(SarathiPolicy):
    """Leaves out the decodes that are chosen in each step, unless nothing would be left to do."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._num_steps = 0

    def plan(self, view: View) -> Plan:
        self._num_steps += 1
        plan = super().plan(view)
        left_out = set(self._choose(self._num_steps, plan.decodes))
        chunks = [chunk for chunk in plan.chunks if chunk[0] not in left_out]
        return Plan(chunks, plan.admitted, has_prefill=plan.has_prefill) if chunks else plan


def every_other(step: int, decodes: Sequence[Request]) -> Sequence[Request]:
    """Now these and now those, for many steps on end."""
    return decodes[(step // 9) % 2 :: 2]


def newcomers(step: int, decodes: Sequence[Request]) -> Sequence[Request]:
    """Those that have their first token alone, most of the time, while all others go on."""
    return [each for each in decodes if each.num_tokens <= each.num_prompt_tokens + 1] if step % 4 else []


@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("policy", "does_stall"),
    [
        ("sarathi", False),
        ("slo", False),
        ("vllm", True),
        ("alternating", True),
        (every_other, True),
        (newcomers, True),
    ],
)
def test_what_is_counted_at_once_is_what_the_schedules_come_to(
    make_rig: MakeRig, policy: Any, does_stall: bool, overlap: bool, num_microbatches: int
) -> None:
    """With pages for everybody: a decode that is left out and then preempted waits for its pages, and by the definition does not stall."""
    rng = random.Random(8)
    rig = make_rig(
        policy=policy if isinstance(policy, str) else Without(policy),
        overlap=overlap,
        num_microbatches=num_microbatches,
        **ROOMY,
    )
    for _ in range(60):
        prompt = [rng.randrange(200, 256) for _ in range(rng.choice([1, 5, 60]))]
        rig.engine.add_request(prompt, SamplingParams(max_tokens=rng.randrange(1, 30), seed=1, ignore_eos=True))
        for _ in range(rng.choice([0, 1, 5])):
            rig.engine.step()
    rig.drain()
    expected = stalls_by_request(rig.executor.schedules, num_microbatches).total()
    assert rig.engine.recorder.num_stalls == expected
    assert num_microbatches > 1 or (expected > 0) is does_stall
    assert rig.engine.recorder.fault is None


@pytest.mark.parametrize(("num_microbatches", "left_out"), [(1, [[], [7], [7], [7]]), (2, [[], [], [7], [7]])])
def test_steps_that_only_read_on_may_leave_somebody_out(num_microbatches: int, left_out: list[list[int]]) -> None:
    """They look as if nothing had changed, but in a pipeline a decode's turn comes while they go on."""
    limits: dict[str, Any] = {"num_pages": 8, "max_num_seqs": 4, "token_budget": 8, "max_model_len": 8, "vocab_size": 8}
    scheduler = Scheduler("sarathi", num_microbatches=num_microbatches, **limits)
    decode: Any = SimpleNamespace(state=RequestState.RUNNING, is_prefilling=False, num_tokens=5, max_num_tokens=8)
    spotter = StallSpotter(scheduler, {7: decode})
    held, nobody = Decodes((7,), array("i", [4])), Decodes((), array("i"))
    chunk = (0, 8, 0, 4, False)
    notes = [StepNote(0, held, 0, (), (), (), ())]
    notes += [StepNote(step, nobody, step - 1, (chunk,), (), (), ()) for step in (1, 2, 3)]
    assert [list(spotter.take(note)) for note in notes] == left_out
