"""An engine process without jax: the real scheduler, loop and session over a device whose next token is a plain function of all tokens so far.

    python fake_engine.py '{"step_s": 0.001, "max_num_seqs": 8}' SOCKET

What a request gets does not depend on what runs beside it, so an answer from a quiet server is what it has to get from a busy one.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sarathi_jax
from sarathi_jax.clock import WallClock
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.faulty_executor import FaultyExecutor
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.errors import SarathiError
from sarathi_jax.faults import parse_faults
from sarathi_jax.outputs import TokenLogprobs
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.serve.engine_process import Session, end_with_parent, iter_messages, tell_end
from sarathi_jax.serve.link import EngineLink, LinkError
from sarathi_jax.serve.messages import EngineFacts, Found, Ready, Start
from sarathi_jax.text.token_constraint import ConstraintFactory
from sarathi_jax.text.tokenizer import Tokenizer

FOLDER = Path(sarathi_jax.__file__).parent / "assets" / "demo"
DEFAULTS: dict[str, Any] = {
    "step_s": 0.001,
    "token_s": 0.0,
    "policy": "sarathi",
    "flight_recorder": 65536,
    "max_num_seqs": 16,
    "token_budget": 256,
    "max_model_len": 2048,
    "num_pages": 2048,
    "page_size": 16,
    "start_s": 0.0,
    "dies_at_start": "",
    "hangs_at_step": 0,
    "dies_at_step": 0,
    "nan_prompt": "",
    "vocab_padding": 0,
    "preempt_every_steps": None,
    "says": "",
    "folder": "",
    "faults": "",
}
SIZES = ("max_num_seqs", "token_budget", "max_model_len", "num_pages", "page_size", "preempt_every_steps")
# A user's message that begins so is answered with the rest of it.
SAY = "Say: "


def folder_of(options: dict[str, Any]) -> Path:
    """Where the tokenizer and the chat template are."""
    return Path(options["folder"]) if options["folder"] else FOLDER


@dataclass(frozen=True)
class Shape:
    num_tokens: int
    num_rows: int
    name: str = "fake"


@dataclass(frozen=True)
class Handle:
    bucket: Shape
    end_s: float
    outcome: StepResult

    def is_ready(self) -> bool:
        return time.perf_counter() >= self.end_s

    def result(self) -> StepResult:
        time.sleep(max(self.end_s - time.perf_counter(), 0.0))
        return self.outcome


class FakeDevice:
    """options: as DEFAULTS. Tokens are those of the tokenizer that are text, and now and then the end.

    Where a mask rules a token out, the next one that it allows comes.
    """

    def __init__(self, options: dict[str, Any], tokenizer: Tokenizer, eos_token_id: int) -> None:
        self._options = options
        self._eos_token_id = eos_token_id
        self._texts = [
            token_id
            for token_id in range(tokenizer.vocab_size)
            if tokenizer.token_bytes(token_id) and token_id not in tokenizer.special_texts
        ]
        self._nan_ids = tokenizer.encode(options["nan_prompt"]) if options["nan_prompt"] else None
        self._says_ids = tokenizer.encode(options["says"], add_special_tokens=False)
        self._tokenizer = tokenizer
        self._said: dict[int, list[int]] = {}  # batch slot -> what the row was told to say
        self._history: dict[int, list[int]] = {}
        self.generation = 0
        self._free_s = 0.0
        self._num_steps = 0

    def submit(self, schedule: Schedule) -> Handle:
        self._num_steps += 1
        if self._num_steps == self._options["dies_at_step"]:
            sys.exit(7)
        if self._num_steps == self._options["hangs_at_step"]:
            time.sleep(3600)
        step_s = self._options["step_s"] + self._options["token_s"] * schedule.num_tokens
        self._free_s = max(self._free_s, time.perf_counter()) + step_s
        token_ids = [self._run_row(row) for row in schedule.rows]
        is_finite = [self._is_finite(row) for row in schedule.rows]
        tops = [TokenLogprobs(-0.5, 1, ((token_id, -0.5), (0, -1.5))) for token_id in token_ids]
        asked = [
            top._replace(top=top.top[: row.sampling.logprobs]) if row.sampling.logprobs is not None else None
            for top, row in zip(tops, schedule.rows, strict=True)
        ]
        prompts = [self._prompt_logprobs(row) for row in schedule.rows]
        result = StepResult(
            token_ids,
            None if all(is_finite) else is_finite,
            asked if any(asked) else None,
            prompts if any(each is not None for each in prompts) else None,
        )
        num_tokens = schedule.num_tokens if schedule.is_decode_only else self._options["token_budget"]
        return Handle(Shape(num_tokens, len(schedule.rows)), self._free_s, result)

    def close(self) -> None:
        pass

    def forget_state(self, generation: int) -> None:
        """As after a step that took the KV pages with it."""
        if generation == self.generation:
            self.generation += 1
            self._history.clear()

    def _is_finite(self, row: ScheduledRow) -> bool:
        return self._nan_ids is None or self._history[row.batch_slot][: len(self._nan_ids)] != self._nan_ids

    def _run_row(self, row: ScheduledRow) -> int:
        if row.is_first:
            self._history[row.batch_slot] = list(row.context_token_ids)
            self._said.pop(row.batch_slot, None)
        # Where the step before never came here, what this one makes means nothing, as on a device: it is lost with that one.
        history, end = self._history.setdefault(row.batch_slot, []), row.start + row.num_tokens
        if row.token_ids is not None:
            history[row.start :] = row.token_ids
        if not row.does_sample:
            return 0
        token_id = self._next_token(history[:end], row)
        if row.token_mask is not None:
            token_id = allowed(row.token_mask, token_id)
        history[end:] = [token_id]
        return token_id

    def _told(self, prompt: Sequence[int]) -> list[int]:
        """What to say, and the end after it; empty: nothing special."""
        _, is_there, rest = self._tokenizer.decode(prompt, skip_special_tokens=False).rpartition(f"<|user|>{SAY}")
        text = rest.split("<|end|>")[0]
        return [*self._tokenizer.encode(text, add_special_tokens=False), self._eos_token_id] if is_there else []

    def _next_token(self, token_ids: Sequence[int], row: ScheduledRow) -> int:
        place = len(token_ids) - row.num_prompt_tokens
        if self._says_ids:
            return self._says_ids[place] if place < len(self._says_ids) else self._eos_token_id
        if row.batch_slot not in self._said:
            self._said[row.batch_slot] = self._told(token_ids[: row.num_prompt_tokens])
        if said := self._said[row.batch_slot]:
            return said[min(place, len(said) - 1)]
        seed = 0 if row.sampling.is_greedy else row.seed
        data = json.dumps(list(token_ids)).encode() + seed.to_bytes(8, "little")
        number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        return self._eos_token_id if number % 61 == 0 else self._texts[number % len(self._texts)]

    def _prompt_logprobs(self, row: ScheduledRow) -> list[TokenLogprobs] | None:
        if row.sampling.prompt_logprobs is None:
            return None
        end = min(row.start + row.num_tokens, row.num_prompt_tokens - 1)
        return [TokenLogprobs(-1.0 - position, 2, ()) for position in range(row.start, end)]


def allowed(mask: np.ndarray, token_id: int) -> int:
    """The token, or the next one after it that a mask allows."""
    ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
    return int(ids[np.searchsorted(ids, token_id) % len(ids)])


class Ledger:
    entries: tuple[()] = ()
    num_after_ready = 0


class FakeStarted:
    """What `Session` needs of a started engine."""

    def __init__(self, options: dict[str, Any]) -> None:
        tokenizer = Tokenizer.from_folder(folder_of(options))
        eos_token_id = tokenizer.eos_token_id
        assert eos_token_id is not None
        vocab_size = tokenizer.vocab_size + options["vocab_padding"]
        scheduler = Scheduler(options["policy"], vocab_size=vocab_size, **{name: options[name] for name in SIZES})
        device = FakeDevice(options, tokenizer, eos_token_id)
        faults = parse_faults(options["faults"])
        executor = FaultyExecutor(device, faults) if faults else device
        self.constraints = ConstraintFactory.from_folder(folder_of(options), vocab_size, [eos_token_id])
        clock, num_events = WallClock(), options["flight_recorder"]
        self.engine = Engine(
            scheduler,
            executor,
            clock,
            is_overlapped=True,
            tokenizer=None,
            eos_token_ids=[eos_token_id],
            recorder=FlightRecorder(scheduler, clock, max_events=num_events, is_overlapped=True)
            if num_events
            else None,
        )
        self.engines = [self.engine]
        self.compile_ledger = Ledger()
        self.facts = EngineFacts(
            model="demo",
            limits=scheduler.limits,
            policy=options["policy"],
            eos_token_ids=[eos_token_id],
            devices=["fake"],
            mesh=None,
            dtype="float32",
            memory="none",
            weight_bytes=0,
            kv_bytes=0,
            tbt_slo_ms=None,
            num_replicas=1,
            num_programs=0,
            num_cache_hits=0,
            compile_s=0.0,
        )


def main(words: Sequence[str]) -> int:
    end_with_parent()
    options = {**DEFAULTS, **json.loads(words[0])}
    link = EngineLink(words[1])
    try:
        next(message for message in iter_messages(link) if isinstance(message, Start))
        if options["dies_at_start"]:
            tell_end(link, options["dies_at_start"])
            return 2
        link.send(Found(str(folder_of(options))))
        time.sleep(options["start_s"])
        started = FakeStarted(options)
        link.send(Ready(started.facts))
        Session(started, link).run()  # pyright: ignore[reportArgumentType]
    except LinkError:
        return 1
    except SarathiError as error:
        tell_end(link, str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
