"""A device without jax: it reads and writes a history by batch slot, as the real one does, and its next token is a plain function of all tokens so far."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.errors import EngineError
from sarathi_jax.outputs import TokenLogprobs
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policy import Policy
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.text.tokenizer import Tokenizer

VOCAB = 256  # bytes
SMALL: dict[str, Any] = {
    "num_pages": 64,
    "page_size": 4,
    "token_budget": 16,
    "max_num_seqs": 4,
    "max_model_len": 128,
    "vocab_size": VOCAB,
}


def next_token(token_ids: Sequence[int], seed: int) -> int:
    """A small letter, as if sampled."""
    digest = hashlib.blake2b(bytes(token_ids) + seed.to_bytes(8, "little"), digest_size=1).digest()
    return ord("a") + digest[0] % 26


@dataclass(frozen=True)
class FakeShape:
    """Steps are padded to multiples of 8."""

    num_tokens: int
    num_rows: int = 8
    name: str = "fake"


@dataclass(frozen=True)
class FakeHandle:
    """A step that ends at a time of the virtual clock."""

    bucket: FakeShape
    clock: VirtualClock
    end_s: float
    outcome: StepResult | EngineError

    def is_ready(self) -> bool:
        return self.clock.now() >= self.end_s

    def result(self) -> StepResult:
        self.clock.advance(max(self.end_s - self.clock.now(), 0.0))
        if isinstance(self.outcome, EngineError):
            raise self.outcome
        return self.outcome


class FakeExecutor:
    """Runs one step after another, each `step_s` long, on a virtual clock.

    failing_steps: numbers of steps, from 0, that fail and lose all history. bad_requests: those whose logits are never finite.
    """

    def __init__(self, clock: VirtualClock, *, step_s: float = 1.0) -> None:
        self.clock = clock
        self.step_s = step_s
        self.free_s = 0.0
        self.failing_steps: set[int] = set()
        self.bad_requests: set[str] = set()
        self.num_steps = self.num_lost = 0
        self.is_closed = False
        self.schedules: list[Schedule] = []
        self._history: dict[int, list[int | None]] = {}

    def submit(self, schedule: Schedule) -> FakeHandle:
        self.schedules.append(schedule)
        self.free_s = max(self.free_s, self.clock.now()) + self.step_s
        number, self.num_steps = self.num_steps, self.num_steps + 1
        outcome: StepResult | EngineError = EngineError(f"Step {number} must run, got a fault: try again.")
        if number in self.failing_steps:
            self._history.clear()
        else:
            outcome = self._run(schedule)
        return FakeHandle(FakeShape(-(-schedule.num_tokens // 8) * 8), self.clock, self.free_s, outcome)

    @property
    def generation(self) -> int:
        return self.num_lost

    def forget_state(self, generation: int) -> None:
        """As the real one: all history is lost, once for all steps in flight."""
        if generation == self.num_lost:
            self.num_lost += 1
            self._history.clear()

    def close(self) -> None:
        self.is_closed = True

    def _run(self, schedule: Schedule) -> StepResult:
        token_ids = [self._run_row(row) for row in schedule.rows]
        is_finite = [row.request_id not in self.bad_requests for row in schedule.rows]
        logprobs = [TokenLogprobs(-1.0, 1, ((token_id, -1.0),)) for token_id in token_ids]
        asked = [
            each if row.sampling.logprobs is not None else None
            for each, row in zip(logprobs, schedule.rows, strict=True)
        ]
        of_prompts = [prompt_logprobs(row) for row in schedule.rows]
        return StepResult(
            token_ids,
            None if all(is_finite) else is_finite,
            asked if any(asked) else None,
            of_prompts if any(each is not None for each in of_prompts) else None,
        )

    def _run_row(self, row: ScheduledRow) -> int:
        """Token by position in the slot's history; a hole or a stale one makes the sampled token wrong."""
        if row.is_first:
            self._history[row.batch_slot] = list(row.context_token_ids)
        history = self._history.setdefault(row.batch_slot, [])
        end = row.start + row.num_tokens
        if row.token_ids is not None:
            history[row.start :] = row.token_ids
        if not row.does_sample:
            return 0
        # What was lost is garbage; nothing that comes of it may be used.
        history += [None] * (end - len(history))
        token_id = next_token([0 if token is None else token for token in history[:end]], row.seed)
        if row.token_mask is not None:
            allowed = np.flatnonzero(np.unpackbits(row.token_mask.view(np.uint8), bitorder="little"))
            token_id = int(allowed[token_id % len(allowed)])
        history[end:] = [token_id]
        return token_id


def prompt_logprobs(row: ScheduledRow) -> list[TokenLogprobs] | None:
    """A row's, which say the position that each is of; None if nobody asked."""
    if row.sampling.prompt_logprobs is None:
        return None
    end = min(row.start + row.num_tokens, row.num_prompt_tokens - 1)
    return [TokenLogprobs(-float(position + 1), 1, ()) for position in range(row.start, end)]


@dataclass(frozen=True)
class Rig:
    """An engine over a fake device."""

    engine: Engine
    executor: FakeExecutor
    clock: VirtualClock

    def drain(self) -> list[Any]:
        """All events until nothing is left to do."""
        events: list[Any] = []
        while self.engine.has_unfinished:
            events += self.engine.step()
            self.engine.scheduler.check_integrity()
        return events

    def outputs(self) -> dict[str, Any]:
        return {event.request_id: event.output for event in self.drain() if event.output is not None}


def byte_tokenizer() -> Tokenizer:
    """Token i is byte i, where that byte is a letter or a digit."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: ord(letter) for letter in alphabet if letter.isascii()}
    others = (each for each in range(VOCAB) if each not in vocab.values())
    vocab |= {letter: next(others) for letter in alphabet if not letter.isascii()}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Tokenizer(tokenizer.to_str())


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
def make_rig() -> Callable[..., Rig]:
    """An engine over a fake device, with a flight recorder that drops nothing; other options are the scheduler's."""

    def make(
        *,
        overlap: bool = True,
        step_s: float = 1.0,
        tokenizer: Tokenizer | None = None,
        policy: Policy | str = "sarathi",
        max_events: int = 10**6,
        **options: Any,
    ) -> Rig:
        clock = VirtualClock()
        executor, scheduler = FakeExecutor(clock, step_s=step_s), Scheduler(policy, **{**SMALL, **options})
        recorder = FlightRecorder(scheduler, clock, max_events=max_events, is_overlapped=overlap)
        engine = Engine(scheduler, executor, clock, is_overlapped=overlap, tokenizer=tokenizer, recorder=recorder)
        return Rig(engine, executor, clock)

    return make


@dataclass
class RandomLoad:
    """Random requests of every kind into a rig, with aborts. outputs: by request, of the last one of an id."""

    rng: random.Random
    talks: list[list[int]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def run(self, rig: Any, num_requests: int) -> None:
        live: list[str] = []
        while num_requests or rig.engine.has_unfinished:
            for _ in range(min(num_requests, self.rng.choice([0, 0, 1, 3]))):
                live.append(self._add(rig, len(live)))
                num_requests -= 1
            events = rig.engine.abort(self.rng.choice(live[-6:])) if live and self.rng.random() < 0.05 else []
            events += rig.engine.step() if rig.engine.has_unfinished else []
            for event in events:
                if event.output is not None:
                    self.outputs[event.request_id] = event.output
                    self.talks.append([*event.output.prompt_token_ids, *event.output.outputs[-1].token_ids])
            rig.engine.scheduler.check_integrity()

    def _add(self, rig: Any, number: int) -> str:
        rng = self.rng
        start = rng.choice(self.talks[-5:]) if self.talks and rng.random() < 0.4 else [1] * rng.choice([0, 4, 9])
        prompt = [*start, *(rng.randrange(200, 256) for _ in range(rng.choice([1, 2, 30])))][:80]
        if number % 7 == 3:
            rig.executor.bad_requests.add(f"r{number}")
        kinds = [{}, {}, {"n": 3}, {"stop": ("a", "xy")}, {"stop_token_ids": tuple(range(97, 104)), "min_tokens": 1}]
        kinds += [{"n": 2, "stop": ("b",)}]
        options = {"seed": rng.getrandbits(20), **rng.choice(kinds)}
        salt = rng.choice(["", "", "x"])
        # An id is free again as soon as its request has ended.
        name = "again" if number % 5 == 4 and "again" not in rig.engine._entries else f"r{number}"
        params = SamplingParams(max_tokens=rng.randint(1, 30), **options)
        # Some go on after output that they had elsewhere; none of it ends an output.
        is_resumed = params.n == 1 and number % 6 == 2
        given = [each for each in prompt[-9:] if each >= 200][: (params.max_tokens or 1) - 1] if is_resumed else []
        return rig.engine.add_request(
            prompt, params, request_id=name, cache_salt=salt, output_token_ids=given if not params.stop else []
        )


@pytest.fixture
def random_run() -> Callable[[Rig, int, int], dict[str, Any]]:
    """`random_run(rig, seed, num_requests)` runs them all. Returns: outputs by request."""

    def run(rig: Rig, seed: int, num_requests: int) -> dict[str, Any]:
        load = RandomLoad(random.Random(seed))
        load.run(rig, num_requests)
        return load.outputs

    return run


@pytest.fixture
def expected_tokens() -> Callable[..., list[int]]:
    """What a request must give: `expected_tokens(prompt, seed, count)`."""

    def tokens(prompt: Sequence[int], seed: int, count: int) -> list[int]:
        known = list(prompt)
        for _ in range(count):
            known.append(next_token(known, seed))
        return known[len(prompt) :]

    return tokens
