"""Measures what steps take, on any executor: steps made by hand, of every size that is compiled and of several contexts, run as the loop would run them.

Steps go straight to the executor, over its real pages; nothing may be running on it, and what its pages held is lost.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sarathi_jax.clock import Clock
from sarathi_jax.engine.executor import Executor, StepHandle
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.schedule import Schedule, ScheduledRow
from sarathi_jax.scheduling.step_profile import StepSample
from sarathi_jax.scheduling.step_times import load_of

SAMPLING = SamplingParams(temperature=0.0, max_tokens=1)
SHORT_CONTEXT = 16
REPEATS_OF_ROUND = 3
DECODE_SHARES = (0.25, 0.75)  # of a step's tokens


class Probe(NamedTuple):
    """A step to measure: decodes that attend to `context` tokens each, and chunks of so many tokens after `cached` ones."""

    num_decodes: int = 0
    context: int = 1
    chunks: tuple[int, ...] = ()
    cached: int = 0

    def rows(self) -> Iterator[tuple[int, int]]:
        """Start and tokens of each."""
        yield from ((self.context - 1, 1) for _ in range(self.num_decodes))
        yield from ((self.cached, num_tokens) for num_tokens in self.chunks)


def plan_probes(decode_sizes: Sequence[int], mixed_sizes: Sequence[int], limits: SchedulerLimits) -> list[Probe]:
    """For each size, steps that fill it and steps that just need it, with short and long contexts: enough to tell apart all terms of `StepTimeModel`.

    Those that do not fit into the KV cache are left out.
    """
    probes: list[Probe] = []
    for below, size in pairwise((0, *decode_sizes)):
        longest = _longest_context(size, limits.num_pages, limits)
        probes += [Probe(size, context) for context in (min(SHORT_CONTEXT, longest), -(-longest // 2), longest)]
        probes.append(Probe(below + 1, _longest_context(below + 1, limits.num_pages, limits)))
    for below, size in pairwise((0, *mixed_sizes)):
        chunks = _chunks(size, limits)
        longest = _longest_context(len(chunks), limits.num_pages, limits)
        probes += [Probe(chunks=chunks), Probe(chunks=chunks, cached=max(longest - max(chunks), 0))]
        probes.append(Probe(chunks=_chunks(min(max(below + 1, 2), size), limits)))
        for share in DECODE_SHARES:
            probes += _hybrids(size, int(share * size), limits)
    return [probe for probe in dict.fromkeys(probes) if _fits(probe, limits)]


def quick_probes(decode_sizes: Sequence[int], mixed_sizes: Sequence[int], limits: SchedulerLimits) -> list[Probe]:
    """The fewest that tell the terms apart: each size once, decodes at a short and a long context, and one chunk after a long history. `observe` learns the rest."""
    probes: list[Probe] = []
    for size in decode_sizes:
        longest = _longest_context(size, limits.num_pages, limits)
        probes += [Probe(size, min(SHORT_CONTEXT, longest)), Probe(size, longest)]
    probes += [Probe(chunks=_chunks(size, limits)) for size in mixed_sizes]
    middle = _chunks(mixed_sizes[len(mixed_sizes) // 2], limits)
    longest = _longest_context(len(middle), limits.num_pages, limits)
    probes.append(Probe(chunks=middle, cached=max(longest - max(middle), 0)))
    return [probe for probe in dict.fromkeys(probes) if _fits(probe, limits)]


def _hybrids(size: int, num_decodes: int, limits: SchedulerLimits) -> list[Probe]:
    """Decodes at a short and at a long context beside new prompts."""
    num_decodes = min(num_decodes, limits.max_num_seqs - len(_chunks(size, limits)))
    if num_decodes < 1 or size - num_decodes < 2:
        return []
    chunks = _chunks(size - num_decodes, limits)
    longest = _longest_context(num_decodes, limits.num_pages - sum(map(limits.num_pages_for, chunks)), limits)
    return [Probe(num_decodes, context, chunks) for context in (min(SHORT_CONTEXT, longest), longest)]


def _longest_context(num_rows: int, num_pages: int, limits: SchedulerLimits) -> int:
    """That so many rows can have in so many pages, none of which they share."""
    return max(min(num_pages // num_rows * limits.page_size, limits.max_model_len), 1)


def _chunks(num_tokens: int, limits: SchedulerLimits) -> tuple[int, ...]:
    """As few as a request's length allows, and as even as they can be."""
    count = -(-num_tokens // limits.max_model_len)
    return tuple(num_tokens // count + (index < num_tokens % count) for index in range(count))


def _fits(probe: Probe, limits: SchedulerLimits) -> bool:
    rows = list(probe.rows())
    return (
        len(rows) <= limits.max_num_seqs
        and max(start + num_tokens for start, num_tokens in rows) <= limits.max_model_len
        and sum(limits.num_pages_for(start + num_tokens) for start, num_tokens in rows) <= limits.num_pages
    )


def num_rounds(num_repeats: int) -> int:
    """That `StepProber.measure` makes of so many repeats."""
    return -(-num_repeats // REPEATS_OF_ROUND)


class StepProber:
    """Runs probes on an executor with nothing else to do.

    Args:
      num_stages: of its pipeline. A decode of a step waits for its next token as long as a microbatch takes through all stages, while others follow it.
      is_overlapped: whether the next step is dispatched before the last one's tokens are read, as the engine's loop does.
    """

    def __init__(
        self, executor: Executor, clock: Clock, limits: SchedulerLimits, *, num_stages: int = 1, is_overlapped: bool
    ) -> None:
        self._executor = executor
        self._clock = clock
        self._limits = limits
        self._num_stages = num_stages
        self._max_in_flight = num_stages - 1 + is_overlapped
        self._num_steps = 0
        self._tokens = np.random.default_rng(0)

    def measure(self, probes: Sequence[Probe], num_repeats: int, on_round: Callable[[], object]) -> list[StepSample]:
        """Run every probe so many times, and not at once: in rounds over all of them, so that a slow minute of the machine is not one probe's alone.

        Args:
          on_round: called after each probe of each round; `num_rounds` says of how many.
        Raises: EngineError if a step fails.
        """
        rows = [self._rows(probe) for probe in probes]
        taken_s: list[list[float]] = [[] for _ in probes]
        for begin in range(0, num_repeats, REPEATS_OF_ROUND):
            count = min(REPEATS_OF_ROUND, num_repeats - begin)
            for of_probe, taken in zip(rows, taken_s, strict=True):
                taken += self._run(of_probe, count, is_first=begin == 0)
                on_round()
        return [self._sample(*each) for each in zip(rows, taken_s, strict=True)]

    def _run(self, rows: Sequence[ScheduledRow], num_repeats: int, *, is_first: bool) -> list[float]:
        """Seconds of each repeat, back to back with others before and after it; the first run, which fills the pipeline, does not count."""
        schedule = self._schedule(rows)
        handles: deque[StepHandle] = deque()
        ends_s: list[float] = []
        for index in range(1 + num_repeats + self._max_in_flight):
            is_new = is_first and index == 0
            handles.append(self._executor.submit(self._schedule(self._admitted(rows)) if is_new else schedule))
            if len(handles) > self._max_in_flight:
                handles.popleft().result()
                ends_s.append(self._clock.now())
        for handle in handles:
            handle.result()
        return (self._num_stages * np.diff(ends_s)).tolist()

    def _sample(self, rows: Sequence[ScheduledRow], taken_s: Sequence[float]) -> StepSample:
        load = load_of(self._schedule(rows))
        median_s, p99_s = np.quantile(taken_s, [0.5, 0.99]).tolist()
        return StepSample(**load._asdict(), median_s=median_s, p99_s=p99_s, num_repeats=len(taken_s))

    def _admitted(self, rows: Sequence[ScheduledRow]) -> list[ScheduledRow]:
        """The first rows of their requests: the executor sets up their slots."""
        return [row._replace(is_first=True) for row in rows]

    def _schedule(self, rows: Sequence[ScheduledRow]) -> Schedule:
        self._num_steps += 1
        num_decode_rows = sum(row.num_tokens == 1 for row in rows)
        return Schedule(self._num_steps, tuple(rows), sum(row.num_tokens for row in rows), num_decode_rows)

    def _rows(self, probe: Probe) -> list[ScheduledRow]:
        """Pages are given out one after the other."""
        rows: list[ScheduledRow] = []
        num_used = 0
        for slot, (start, num_tokens) in enumerate(probe.rows()):
            num_pages = self._limits.num_pages_for(start + num_tokens)
            row = ScheduledRow(
                request_id=f"probe-{slot}",
                start=start,
                num_tokens=num_tokens,
                token_ids=self._tokens.integers(self._limits.vocab_size, size=num_tokens).tolist(),
                block_table=np.arange(num_used, num_used + num_pages, dtype=np.int32),
                batch_slot=slot,
                does_sample=True,
                is_first=False,
                context_token_ids=(),
                num_prompt_tokens=start + num_tokens,
                num_output_tokens=0,
                sampling=SAMPLING,
                seed=0,
            )
            rows.append(row)
            num_used += num_pages
        return rows
