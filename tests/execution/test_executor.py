"""The executor when things break: steps that fail at dispatch or later, set-up that fails, logits that are not finite. Others go on as if nothing had been."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.errors import EngineError
from sarathi_jax.sampling_params import SamplingParams

RNG = np.random.default_rng(4)
PROMPTS = [RNG.integers(3, 30, size).tolist() for size in (3, 45, 17, 60, 9)]
NAN_TOKEN = 33  # in no prompt but those that are to break


def greedy(**options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 10, "ignore_eos": True, **options})


CALLS = [(prompt, greedy()) for prompt in PROMPTS]


class BrokenOutput:
    """The output of a step that failed after its dispatch."""

    def copy_to_host_async(self) -> None:
        """Nothing is there to copy."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise jax.errors.JaxRuntimeError("INTERNAL: injected while it ran")


class Faults:
    """Wraps compiled steps: those of the given numbers, from 0, fail, and the state they were given is lost."""

    def __init__(self, *, at_dispatch: set[int] | None = None, while_running: set[int] | None = None) -> None:
        self.at_dispatch, self.while_running = at_dispatch or set(), while_running or set()
        self.count = 0

    def __call__(self, step: Any) -> Callable[..., Any]:
        def run(params: Any, state: Any, packed: Any) -> tuple[Any, Any]:
            number, self.count = self.count, self.count + 1
            if number in self.at_dispatch:
                jax.tree.map(lambda array: array.delete(), state)
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: injected at dispatch")
            state, out = step(params, state, packed)
            return (state, BrokenOutput()) if number in self.while_running else (state, out)

        return run


@pytest.fixture(scope="module")
def expected(tiny: Any) -> list[list[int]]:
    """Tokens without any fault, judged by the dense forward."""
    tokens = [output.outputs[0].token_ids for output in tiny.run(*CALLS)]
    for prompt, each in zip(PROMPTS, tokens, strict=True):
        assert tiny.logits([*prompt, *each])[len(prompt) - 1 : -1].argmax(-1).tolist() == each
    return tokens


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sarathi_jax.engine.loop")


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("kind", ["at_dispatch", "while_running"])
@pytest.mark.parametrize("numbers", [{0}, {1}, {4}, {6, 11}, {2, 5, 9, 13}])
def test_a_failed_step_costs_no_request_anything(
    tiny: Any, expected: list[list[int]], overlap: bool, kind: Any, numbers: set[int]
):
    faults = Faults(**{kind: numbers})
    outputs = tiny.with_steps(faults).run(*CALLS, overlap=overlap)
    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    assert faults.count > max(numbers)


@pytest.mark.parametrize("kind", ["at_dispatch", "while_running"])
def test_slots_are_set_up_anew_after_a_fault(tiny: Any, kind: Any):
    """Penalties, masks and log-probabilities live in the state that was lost."""
    params = greedy(repetition_penalty=2.0, allowed_token_ids=(4, 5, 6, 7, 35), min_tokens=3, logprobs=2)
    calls = [(prompt, params) for prompt in PROMPTS]
    sound, shaken = tiny.run(*calls), tiny.with_steps(Faults(**{kind: {3, 8}})).run(*calls)
    for before, after in zip(sound, shaken, strict=True):
        assert after.outputs[0].token_ids == before.outputs[0].token_ids
        assert [each.rank for each in after.outputs[0].logprobs] == [each.rank for each in before.outputs[0].logprobs]


def test_the_fault_is_named(tiny: Any):
    engine = tiny.with_steps(Faults(while_running={0})).engine()
    engine.add_request(*CALLS[0])
    handle = engine.loop.executor.submit(engine.scheduler.schedule(0.0))
    with pytest.raises(EngineError) as caught:
        handle.result()
    rule = r"Step 0 (mixed 32x4 greedy) must run to its end, got INTERNAL: injected while it ran: its requests"
    assert str(caught.value).startswith(rule)


@pytest.mark.parametrize("overlap", [True, False])
def test_steps_that_always_fail_are_given_up(tiny: Any, expected: list[list[int]], overlap: bool):
    faults = Faults(while_running=set(range(5, 100)))
    engine = tiny.with_steps(faults).engine(overlap=overlap)
    with pytest.raises(EngineError, match=r"another failure, whoever was in them: Step .* Start the engine"):
        tiny.run_on(engine, *CALLS)
    for number in range(len(CALLS)):
        engine.abort(f"request-{number}")
    faults.while_running = set()
    assert [output.outputs[0].token_ids for output in tiny.run_on(engine, *CALLS)] == expected


@pytest.mark.parametrize("overlap", [True, False])
def test_slot_set_up_that_fails_is_a_failed_step(tiny: Any, overlap: bool):
    """It donates the state too."""
    params, count = greedy(repetition_penalty=2.0), 0
    sound = tiny.run((PROMPTS[0], params), (PROMPTS[1], params))
    engine = tiny.engine(overlap=overlap)
    runner = engine.loop.executor.runner
    programs = runner.programs

    def set_slot(slots: Any, packed: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            jax.tree.map(lambda array: array.delete(), slots)
            raise jax.errors.JaxRuntimeError("INTERNAL: injected in set-up")
        return programs.set_slot(slots, packed)

    runner.programs = type(programs)(programs.steps, programs.make_state, set_slot)
    outputs = tiny.run_on(engine, (PROMPTS[0], params), (PROMPTS[1], params))
    assert [each.outputs[0].token_ids for each in outputs] == [each.outputs[0].token_ids for each in sound]


@pytest.fixture(scope="module")
def poisoned(tiny: Any) -> Any:
    """A model that one token breaks: its embedding is not a number."""
    return tiny.with_param("embedding.embedding", lambda table: table.at[NAN_TOKEN].set(jnp.nan))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("options", [{}, {"logprobs": 1, "repetition_penalty": 1.0}])
def test_logits_that_are_not_finite_end_their_request_alone(
    poisoned: Any, expected: list[list[int]], overlap: bool, options: dict[str, Any]
):
    broken = [*PROMPTS[3][:20], NAN_TOKEN, *PROMPTS[3][20:]]
    calls = [(prompt, greedy(**options)) for prompt in PROMPTS]
    outputs = poisoned.run(*calls[:2], (broken, greedy(**options)), *calls[2:], overlap=overlap)
    failed = outputs.pop(2).outputs[0]
    assert (failed.finish_reason, failed.token_ids, failed.stop_reason) == ("error", [], "numerical_error")
    assert [output.outputs[0].token_ids for output in outputs] == expected


def test_pages_of_a_broken_request_do_no_harm_to_those_who_get_them(poisoned: Any, expected: list[list[int]]):
    """Few pages, taken by a broken request first: what it left in them is not finite."""
    engine = poisoned.engine(num_pages=20)
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        broken = poisoned.run_on(engine, ([*PROMPTS[4], NAN_TOKEN, *range(3, 25)] * 2, greedy()))[0]
        assert broken.outputs[0].finish_reason == "error"
        assert poisoned.run_on(engine, (prompt, greedy()))[0].outputs[0].token_ids == tokens


def test_pages_of_a_broken_request_are_not_found_by_others(poisoned: Any, tiny: Any, expected: list[list[int]]):
    engine = poisoned.engine(token_budget=8)
    poisoned.run_on(engine, ([*PROMPTS[1], NAN_TOKEN], greedy()))
    outputs = poisoned.run_on(engine, *CALLS[1:2])
    assert outputs[0].outputs[0].token_ids == expected[1]
    broken = poisoned.run_on(engine, ([*PROMPTS[1], NAN_TOKEN], greedy()))[0]
    assert broken.outputs[0].finish_reason == "error"


def test_nan_weights_are_a_fault_of_the_engine(tiny: Any):
    """The first step is run again, those of the second end, and with the third it is clear that it is not the requests."""
    sick = tiny.with_param("norm.scale", lambda scale: scale * jnp.nan)
    engine = sick.engine()
    with pytest.raises(EngineError, match="Some row of 3 steps must have finite logits"):
        sick.run_on(engine, *CALLS, *CALLS, *CALLS)


def test_closing_twice_is_no_error(tiny: Any):
    engine = tiny.engine()
    engine.add_request(*CALLS[0])
    engine.step()
    engine.close()
    engine.close()
    assert engine.scheduler.num_free_pages == engine.scheduler.limits.num_pages


def test_nothing_compiles_while_500_mixed_requests_are_served(tiny: Any):
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile"):
            compiled.append(event)

    calls = [(PROMPTS[i % 5][: 1 + i % 43], greedy(max_tokens=1 + i % 4, **MIX[i % len(MIX)])) for i in range(500)]
    engine = tiny.engine()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        outputs = tiny.run_on(engine, *calls)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1 + i % 4 for i in range(500)]
    assert tiny.programs.ledger.num_after_ready == 0
    assert compiled == []


MIX: list[dict[str, Any]] = [{}, {"logprobs": 3}, {}, {"temperature": 1.0, "min_tokens": 1}, {"prompt_logprobs": 1}]


def test_warming_up_changes_nothing_that_a_request_sees(tiny: Any) -> None:
    """Every program runs once on padding alone: pages and slots, full of what others left, are as they were."""
    executor = tiny.programs.executor(tiny.params)
    runner: Any = executor.runner
    runner.state = jax.tree.map(lambda leaf: jax.device_put(jnp.full_like(leaf, 7), leaf.sharding), runner.state)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(runner.state)]
    executor.warm_up(progress=False)
    for leaf, old in zip(jax.tree.leaves(runner.state), before, strict=True):
        np.testing.assert_array_equal(leaf, old)


def test_warming_up_runs_every_program(tiny: Any) -> None:
    seen: list[Any] = []

    def wrap(step: Any) -> Any:
        return lambda *arguments: (seen.append(step), step(*arguments))[1]

    wrapped = tiny.with_steps(wrap)
    wrapped.programs.executor(tiny.params).warm_up(progress=False)
    assert seen == list(tiny.programs.programs.steps.values())
