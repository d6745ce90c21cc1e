"""Faults and resumed requests on the real engine: lost KV pages are really lost, and tokens are those of the undisturbed run, which is the oracle here.

The undisturbed run gives each prompt to the engine alone. `tests/engine/test_same_tokens.py` has what its tokens must be from a forward that is no engine.
"""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from sarathi_jax import LLM
from sarathi_jax.engine.faulty_executor import FaultyExecutor
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.faults import parse_faults
from sarathi_jax.sampling_params import SamplingParams

PROMPTS = [
    "Sort these words: pear apple fig",
    "Count from 3 to 9:",
    "2+3=",
    "What is a KV page?",
    "Reverse: abcdef",
    "17+25=",
]
PROMPTS += ["Copy: the quick brown fox", "Count from 1 to 5:"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM("demo", num_pages=34, page_size=8, token_budget=128, max_num_seqs=8, max_model_len=120)
    yield llm
    llm.close()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sarathi_jax.engine")


@pytest.fixture(scope="module")
def solo(llm: LLM) -> list[list[int]]:
    """What each prompt gives alone."""
    return [llm.generate([prompt], params(20, ignore_eos=True))[0].outputs[0].token_ids for prompt in PROMPTS]


def params(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "seed": 1, **options})


def run(llm: LLM, faults: str, prompts: list[Any] | None = None, **options: Any) -> list[Any]:
    """All prompts at once, with faults before the executor. Returns: the only sample of each."""
    loop = llm.engines[0].loop
    executor: Any = loop.executor
    loop.executor = FaultyExecutor(executor, parse_faults(faults))
    try:
        outputs = llm.generate(prompts or PROMPTS, params(20, ignore_eos=True, **options))
    finally:
        loop.executor = executor
    llm.engines[0].scheduler.check_integrity()
    return [output.outputs[0] for output in outputs]


@pytest.mark.parametrize(
    "faults", ["step.raise.after_donate@5", "step.raise.before@0", "step.raise.after_donate@/15", "step.nan_all@4"]
)
def test_b_j01_failed_steps(llm: LLM, solo: list[list[int]], faults: str):
    """The KV pages are new and empty after it: nothing that was cached before is found, or is needed."""
    executor: Any = llm.engines[0].loop.executor
    before = executor.generation
    assert [output.token_ids for output in run(llm, faults)] == solo
    assert (executor.generation > before) == ("raise" in faults)


@pytest.mark.parametrize("guilty", [0, 3, 7])
def test_b_j02_a_poison_request(llm: LLM, solo: list[list[int]], guilty: int):
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    first = 300
    prompts: list[Any] = [tokenizer.encode(prompt) for prompt in PROMPTS]
    prompts[guilty] = [first, *prompts[guilty]]
    assert [prompt[0] for prompt in prompts].count(first) == 1
    executor: Any = llm.engines[0].loop.executor
    before = executor.generation
    outputs = run(llm, f"step.poison={first}", prompts)
    assert (outputs[guilty].finish_reason, outputs[guilty].stop_reason) == ("error", "internal_error")
    assert [outputs[i].token_ids for i in range(8) if i != guilty] == [solo[i] for i in range(8) if i != guilty]
    assert executor.generation - before <= 5  # 1 + 1 + log2(8)


@pytest.mark.parametrize("fault", ["step.nan_row@3:2", "step.oob_token@3:2"])
def test_b_j03_a_row_that_is_not_finite(llm: LLM, solo: list[list[int]], fault: str):
    outputs = run(llm, fault)
    [bad] = [place for place, output in enumerate(outputs) if output.finish_reason == "error"]
    assert outputs[bad].stop_reason == "numerical_error"
    assert outputs[bad].token_ids == solo[bad][: len(outputs[bad].token_ids)]
    assert [output.token_ids for i, output in enumerate(outputs) if i != bad] == [solo[i] for i in range(8) if i != bad]
    assert [output.token_ids for output in run(llm, "")] == solo  # nothing that the bad one left is found


def test_an_exception_of_the_host_costs_a_step(llm: LLM, solo: list[list[int]], monkeypatch: pytest.MonkeyPatch):
    """Whatever goes wrong while a step is packed: it is a failed step, and not the end."""
    from sarathi_jax.execution import executor

    pack, calls = executor.pack, iter(range(1000))

    def break_once(*args: Any) -> Any:
        if next(calls) == 6:
            raise IndexError("out of bounds")
        return pack(*args)

    monkeypatch.setattr(executor, "pack", break_once)
    assert [output.token_ids for output in run(llm, "")] == solo


def test_without_faults_nothing_stands_before_the_executor(llm: LLM):
    assert type(llm.engines[0].loop.executor) is JaxExecutor


@pytest.mark.nightly
def test_faults_of_the_environment_stand_before_the_executor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SARATHI_JAX_FAULTS", "step.oob_token@1")
    other = LLM("demo", num_pages=34, page_size=8, token_budget=128, max_num_seqs=8, max_model_len=120)
    assert other.generate([PROMPTS[0]], params(5, ignore_eos=True))[0].outputs[0].stop_reason == "numerical_error"
    other.close()


REAL: list[tuple[str, dict[str, Any]]] = [
    ("Sort these words: pear apple fig kiwi plum", {"temperature": 0.0, "ignore_eos": True}),
    ("Count from 3 to 19:", {"temperature": 0.9, "top_p": 0.9, "ignore_eos": True}),
    (
        "Count from 3 to 9:",
        {"temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.8, "ignore_eos": True},
    ),
    (
        "What is a KV page?",
        {"temperature": 0.8, "presence_penalty": 1.5, "logprobs": 2, "prompt_logprobs": 1, "min_tokens": 9},
    ),
    ("2+3=", {"temperature": 0.7, "min_tokens": 12, "logit_bias": {70: 1.0}}),
]


@pytest.mark.parametrize(("prompt", "options"), REAL, ids=str)
def test_a_request_goes_on_from_every_split_point(llm: LLM, prompt: str, options: dict[str, Any]):
    """At every split point, all of them at once, so that they share steps with one another."""
    asked = params(20, **options)
    whole = llm.generate([prompt], asked)[0]
    [before] = whole.outputs
    names = [
        llm.engine.add_request(prompt, asked, output_token_ids=before.token_ids[:split])
        for split in range(1, len(before.token_ids))
    ]
    outputs: dict[str, Any] = {}
    while llm.engine.has_unfinished:
        outputs |= {event.request_id: event.output for event in llm.engine.step() if event.output is not None}
    assert len(names) >= 4
    for split, name in enumerate(names, 1):
        [sample] = outputs[name].outputs
        assert (sample.token_ids, sample.text) == (before.token_ids, before.text), f"after {split} tokens"
        assert (sample.finish_reason, sample.stop_reason) == (before.finish_reason, before.stop_reason)
        # Steps of other shapes add in another order: 5e-5 is what tests/engine/test_same_tokens.py allows logits.
        for one, other in zip(sample.logprobs or [], (before.logprobs or [])[split:], strict=True):
            assert (one.rank, [token for token, _ in one.top]) == (other.rank, [token for token, _ in other.top])
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
