"""Nothing compiles once an engine is ready: 500 mixed requests, counted by the engine's ledger and by jax's own monitoring."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from sarathi_jax import LLM, SamplingParams

VOCAB = 29
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
    "eos_token_id": 5,
}
# Tracing, lowering and backend compilation, the last one whether or not a cache had the program.
COMPILE_EVENTS = "/jax/core/compile/"

# One a request, beside what is drawn for it.
FEATURES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "ignore_eos": True},
    {},
    {"top_k": 4},
    {"top_p": 0.6, "seed": 7},
    {"min_p": 0.2, "temperature": 1.7},
    {"repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "frequency_penalty": -0.5, "temperature": 0.0},
    {"logit_bias": {3: 2.0, 28: -1.0}},
    {"allowed_token_ids": (1, 5, 9), "stop_token_ids": (9,)},
    {"min_tokens": 1, "temperature": 0.0},
    {"logprobs": 20},
    {"prompt_logprobs": 3, "temperature": 0.0},
    {"n": 2, "seed": 3},
    {"n": 3, "logprobs": 0, "top_p": 0.9},
]


@contextmanager
def compile_events() -> Iterator[list[str]]:
    """The events of jax's compiler while the block runs."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILE_EVENTS):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    options: dict[str, Any] = {"token_budget": 32, "max_num_seqs": 4, "page_size": 4, "num_pages": 40}
    llm = LLM(str(folder), load_format="dummy", preempt_every_steps=50, **options)
    yield llm
    llm.close()


def run_mixed(
    llm: LLM, num_requests: int, rng: random.Random, features: Sequence[dict[str, Any]] = FEATURES
) -> tuple[int, int]:
    """Requests that arrive while others run, some of which are aborted. Returns: how many finished, how many were aborted."""
    engine, live, num_finished, num_aborted = llm.engine, set[str](), 0, 0
    while num_requests or engine.has_unfinished:
        for _ in range(min(num_requests, rng.choice([0, 0, 1, 2, 6]))):
            prompt = [
                rng.randrange(VOCAB) for _ in range(rng.randint(1, 80) if rng.random() < 0.3 else rng.randint(1, 12))
            ]
            params = SamplingParams(max_tokens=rng.randint(1, 12), **rng.choice(features))
            live.add(engine.add_request(prompt, params))
            num_requests -= 1
        if live and rng.random() < 0.02:
            engine.abort(victim := rng.choice(sorted(live)))
            live.remove(victim)
            num_aborted += 1
        finished = {event.request_id for event in engine.step() if event.output is not None}
        num_finished += len(finished & live)
        live -= finished
    return num_finished, num_aborted


def test_nothing_compiles_while_500_requests_are_served(llm: LLM):
    num_programs = len(llm.compile_ledger.entries)
    with compile_events() as seen:
        runs = [run_mixed(llm, 440, random.Random(0)), run_mixed(llm, 60, random.Random(1), FEATURES[:2])]
    num_finished, num_aborted = map(sum, zip(*runs, strict=True))
    assert num_finished + num_aborted == 500 and num_aborted > 5
    assert seen == []
    assert llm.compile_ledger.num_after_ready == 0 and len(llm.compile_ledger.entries) == num_programs
    used = {record.bucket.name for record in llm.engine.records}
    steps = {entry.name for entry in llm.compile_ledger.entries if entry.num_tokens}
    assert used == steps, "every program was of use"


def test_a_compile_is_seen():
    with compile_events() as seen:
        jax.jit(lambda x: x * 3 + 1)(jnp.arange(7))
    assert any("backend_compile" in event for event in seen)
