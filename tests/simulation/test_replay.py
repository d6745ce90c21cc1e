"""A run of the real engine, recorded and replayed: the same decisions, byte for byte.

The runs have what makes decisions hard to repeat: preemptions for want of pages, prefixes that are found (prompts that begin alike, and follow-ups that begin
with an earlier prompt and its output), several samples of a prompt, stop strings, stop tokens, salts, prompt log-probabilities, aborts at any time, requests
that go on after output they had elsewhere, both loops.
Two things are compared: what `replay` compares, and all of each schedule as it left the scheduler, written out here without the recorder's help.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax import LLM, SamplingParams
from sarathi_jax.clock import WallClock
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.flight_record import FlightRecord, read_record
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.replay import replay

PAGE_SIZE, MAX_MODEL_LEN, NUM_PAGES = 8, 120, 34
BUDGET, WHOLE_BUDGET = 32, 128
WHOLE_PROMPTS = {"vllm", "orca", "request_level"}  # need a budget for the longest
NEVER_PREEMPT = {"orca", "request_level"}
LIMITS: dict[str, Any] = {
    "page_size": PAGE_SIZE,
    "max_num_seqs": 8,
    "max_model_len": MAX_MODEL_LEN,
}
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "ignore_eos": True},
    {"temperature": 1.2},
    {"stop": ("e", "12")},
    {"stop_token_ids": tuple(range(20, 50)), "min_tokens": 2},
    {"n": 3, "seed": 5},
    {"n": 2, "stop": ("a",)},
    {"prompt_logprobs": 0, "temperature": 0.0},
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM("demo", num_pages=NUM_PAGES, token_budget=WHOLE_BUDGET, flight_recorder=0, **LIMITS)
    yield llm
    llm.close()


def written_out(row: ScheduledRow) -> list[Any]:
    sizes = [row.start, row.num_tokens, row.num_prompt_tokens, row.num_output_tokens]
    flags = [row.does_sample, row.is_first, row.token_ids is None]
    return [row.request_id, row.batch_slot, row.block_table.tolist(), sizes, flags]


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All of every schedule that any scheduler makes from now on."""
    seen: list[bytes] = []
    schedule = Scheduler.schedule

    def watched(self: Scheduler, now_s: float) -> Schedule | None:
        found = schedule(self, now_s)
        if found is not None:
            rows = [written_out(row) for row in found.rows]
            seen.append(json.dumps([found.step, found.num_decode_rows, found.preempted_request_ids, rows]).encode())
        return found

    monkeypatch.setattr(Scheduler, "schedule", watched)
    return seen


class Load:
    """Random requests, and what becomes of them."""

    def __init__(self, llm: LLM, rng: random.Random) -> None:
        self._rng = rng
        self._texts = ["Count from 3 to 19:", "Sort these words: pear apple fig", "2+3=", "What is a KV page? " * 3]
        self._tokenizer = llm.tokenizer
        self._talks: list[list[int]] = []
        self.finish_reasons: list[str] = []
        self.num_resumed = 0

    def add(self, engine: Engine) -> str:
        rng = self._rng
        params = SamplingParams(**{"max_tokens": rng.randint(2, 40), "seed": rng.getrandbits(40), **rng.choice(KINDS)})
        assert self._tokenizer is not None
        if self._talks and rng.random() < 0.4:
            prompt = rng.choice(self._talks[-8:])
        else:
            prompt = self._tokenizer.encode(" ".join(rng.choices(self._texts, k=rng.randint(1, 3))))
        prompt = [*prompt, *rng.choices(range(64, 90), k=rng.choice([0, 0, 3, 30]))][: MAX_MODEL_LEN - 40]
        # Some go on after output that they had elsewhere.
        split = len(prompt) - rng.randint(1, min(8, (params.max_tokens or 2) - 1))
        ends = {*engine._eos_token_ids, *params.stop_token_ids}.intersection(prompt[split:])
        is_resumed = split > 0 and not ends and params.n == 1 and not params.stop and rng.random() < 0.3
        split = split if is_resumed else len(prompt)
        self.num_resumed += is_resumed
        salt = rng.choice(["", "", "", "a", "b"])
        return engine.add_request(prompt[:split], params, cache_salt=salt, output_token_ids=prompt[split:])

    def take(self, event: Any) -> None:
        if event.output is not None:
            self.finish_reasons += [sample.finish_reason for sample in event.output.outputs]
            self._talks.append([*event.output.prompt_token_ids, *event.output.outputs[-1].token_ids])


def run(engine: Engine, load: Load, rng: random.Random, num_requests: int) -> None:
    """Send requests while others run, and abort some."""
    live: list[str] = []
    while num_requests or engine.has_unfinished:
        for _ in range(min(num_requests, rng.choice([0, 0, 0, 1, 1, 4]))):
            live.append(load.add(engine))
            num_requests -= 1
        if live and rng.random() < 0.03:
            for event in engine.abort(rng.choice(live[-12:])):
                load.take(event)
        for event in engine.step() if engine.has_unfinished else ():
            load.take(event)


def recorded_run(llm: LLM, folder: Path, num_requests: int, **options: Any) -> tuple[FlightRecord, Load]:
    """Run an engine with a scheduler of its own over the executor, and read back what was recorded."""
    overlap, policy = options.pop("overlap"), options.pop("policy")
    budget = WHOLE_BUDGET if policy in WHOLE_PROMPTS else BUDGET
    sizes = {"num_pages": NUM_PAGES, "token_budget": budget, "vocab_size": llm.model_config.vocab_size}
    limits = {**sizes, **LIMITS, **options}
    scheduler, clock = Scheduler(policy, **limits), WallClock()
    recorder = FlightRecorder(scheduler, clock, max_events=10**6, is_overlapped=overlap, model="demo")
    engine = Engine(
        scheduler,
        llm.engines[0].loop.executor,
        clock,
        is_overlapped=overlap,
        tokenizer=llm.tokenizer,
        eos_token_ids=llm.model_config.eos_token_ids,
        recorder=recorder,
    )
    rng = random.Random(hash((num_requests, overlap)))
    load = Load(llm, rng)
    run(engine, load, rng, num_requests)
    assert recorder.fault is None
    recorder.dump(folder / "run.jsonl.gz")
    return read_record(folder / "run.jsonl.gz"), load


def check_identity(record: FlightRecord, load: Load, decisions: list[bytes]) -> None:
    """Replay, and compare all that was decided."""
    recorded = decisions.copy()
    decisions.clear()
    found = replay(record)
    assert found.difference is None
    assert found.num_steps == len(recorded) == len(decisions)
    assert decisions == recorded
    assert found.num_prefix_hit_tokens > 0
    assert load.num_resumed == sum(bool(facts.num_resumed_tokens) for facts in record.requests.values()) > 0
    assert (found.num_preemptions > 0) != (record.header.policy in NEVER_PREEMPT)
    assert {"stop", "length", "abort"} <= set(load.finish_reasons)


# A loop, and options of the scheduler.
MODES: dict[str, tuple[bool, dict[str, Any]]] = {
    "overlapped": (True, {}),
    "plain": (False, {}),
    "plain-uncached": (False, {"is_prefix_caching": False}),
}


@pytest.mark.parametrize(
    ("policy", "mode"), [*((policy, "overlapped") for policy in POLICIES), ("sarathi", "plain-uncached")]
)
def test_100_requests_of_the_real_engine_are_replayed_byte_for_byte(
    llm: LLM, tmp_path: Path, decisions: list[bytes], policy: str, mode: str
):
    overlap, options = MODES[mode]
    record, load = recorded_run(llm, tmp_path, 100, policy=policy, overlap=overlap, **options)
    check_identity(record, load, decisions)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", POLICIES)
def test_1000_requests_of_the_real_engine_are_replayed_byte_for_byte(
    llm: LLM, tmp_path: Path, decisions: list[bytes], policy: str, mode: str
):
    overlap, options = MODES[mode]
    record, load = recorded_run(llm, tmp_path, 1000, policy=policy, overlap=overlap, **options)
    check_identity(record, load, decisions)


def test_an_engine_that_records_nothing_says_so(llm: LLM, tmp_path: Path):
    with pytest.raises(ConfigError, match="flight_recorder must be above 0 to record anything, got 0"):
        llm.dump_flight_record(tmp_path / "run.jsonl")
