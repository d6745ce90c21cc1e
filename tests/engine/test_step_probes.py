"""Probes: steps that can be, that tell all terms of the step-time model apart, and are timed as the loop runs them; on a machine whose times are known."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.step_probes import Probe, StepProber, num_rounds, plan_probes
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.schedule import Schedule, StepResult
from sarathi_jax.scheduling.step_profile import StepProfile, StepSample
from sarathi_jax.scheduling.step_times import StepLoad, StepTimeModel, load_of, padded_size

DECODE_SIZES, MIXED_SIZES = (1, 4, 16, 32), (32, 128, 256)
LIMITS = SchedulerLimits(
    num_pages=3000, page_size=16, token_budget=256, max_num_seqs=32, max_model_len=1000, vocab_size=50
)


class Machine:
    """One step after the other, each as long as it is told; several may be on their way.

    num_stages: a step takes so many ticks, one of which ends with each step behind it.
    """

    def __init__(self, seconds: Callable[[Schedule], float], num_stages: int = 1) -> None:
        self.clock = VirtualClock()
        self.seen: list[Schedule] = []
        self._seconds = seconds
        self._num_stages = num_stages
        self._ticks_s: list[float] = []

    def submit(self, schedule: Schedule) -> Any:
        return Handle(self, self.dispatch(schedule))

    def dispatch(self, schedule: Schedule) -> int:
        self.seen.append(schedule)
        begin_s = max(self.clock.now(), self._ticks_s[-1] if self._ticks_s else 0.0)
        self._ticks_s.append(begin_s + self._seconds(schedule) / self._num_stages)
        return len(self._ticks_s) - 1

    def wait(self, index: int) -> None:
        while len(self._ticks_s) < index + self._num_stages:  # ticks with nothing to take in
            self._ticks_s.append(max(self.clock.now(), self._ticks_s[-1]))
        self.clock.advance(max(self._ticks_s[index + self._num_stages - 1] - self.clock.now(), 0.0))

    def close(self) -> None:
        pass


class Handle:
    bucket: Any = None

    def __init__(self, machine: Machine, index: int) -> None:
        self._machine, self._index = machine, index

    def is_ready(self) -> bool:
        return True

    def result(self) -> StepResult:
        self._machine.wait(self._index)
        return StepResult([0] * len(self._machine.seen[0].rows))


def true_seconds(load: StepLoad) -> float:
    size = padded_size(load.num_tokens, DECODE_SIZES if load.is_decode_only else MIXED_SIZES)
    base_s = (5e-3 if load.is_decode_only else 7e-3) + 20e-6 * size
    return base_s + 30e-6 * load.num_rows + 1e-7 * load.decode_context + 4e-9 * load.chunk_pairs


def measure(machine: Machine, probes: list[Probe], num_repeats: int = 4, **options: Any) -> list[StepSample]:
    prober = StepProber(machine, machine.clock, LIMITS, **{"is_overlapped": True, **options})
    return prober.measure(probes, num_repeats, lambda: None)


def test_a_plan_tells_all_terms_apart() -> None:
    machine = Machine(lambda schedule: true_seconds(load_of(schedule)))
    samples = measure(machine, plan_probes(DECODE_SIZES, MIXED_SIZES, LIMITS))
    names = dict.fromkeys(("model", "device", "mesh", "dtype", "kv_dtype", "kernels", "jax_version"), "")
    counts = dict.fromkeys(("token_budget", "max_num_seqs", "max_model_len", "num_kv_tokens"), 1)
    sizes: dict[str, Any] = {"decode_sizes": DECODE_SIZES, "mixed_sizes": MIXED_SIZES}
    model = StepTimeModel.fit(StepProfile(**names, **counts, **sizes, samples=tuple(samples)))
    found = (model.per_row_s, model.per_context_s, model.per_pair_s)
    assert found == pytest.approx((30e-6, 1e-7, 4e-9), rel=1e-6)
    assert model.mixed.seconds == pytest.approx([7e-3 + 20e-6 * size for size in MIXED_SIZES])
    assert model.decode.seconds == pytest.approx([5e-3 + 20e-6 * size for size in DECODE_SIZES])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.sampled_from([1, 4, 16]), st.integers(1, 40), st.integers(1, 300), st.integers(0, 300))
def test_planned_steps_can_be(
    num_pages: int, page_size: int, max_num_seqs: int, max_model_len: int, more_tokens: int
) -> None:
    limits = SchedulerLimits(
        num_pages=num_pages,
        page_size=page_size,
        token_budget=max_num_seqs + more_tokens,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        vocab_size=9,
    )
    decode_sizes = sorted({1, max_num_seqs})
    for probe in plan_probes(decode_sizes, [limits.token_budget], limits):
        rows = list(probe.rows())
        ends = [start + num_tokens for start, num_tokens in rows]
        assert 0 < len(rows) <= max_num_seqs and min(start for start, _ in rows) >= 0
        assert min(num_tokens for _, num_tokens in rows) >= 1 and max(ends) <= max_model_len
        assert sum(-(-end // page_size) for end in ends) <= num_pages
        assert sum(num_tokens for _, num_tokens in rows) <= limits.token_budget


def test_a_plan_has_every_size_with_several_contexts() -> None:
    probes = plan_probes(DECODE_SIZES, MIXED_SIZES, LIMITS)
    for size in DECODE_SIZES:
        contexts = {probe.context for probe in probes if not probe.chunks and probe.num_decodes == size}
        assert min(contexts) <= 16 and max(contexts) == 1000
    for size in MIXED_SIZES:
        filling = [probe for probe in probes if probe.chunks and probe.num_decodes + sum(probe.chunks) == size]
        assert {bool(probe.num_decodes) for probe in filling} == {False, True}
        assert max(probe.cached for probe in filling) == 1000 - size
    # The smallest steps that are padded to 256.
    assert Probe(chunks=(129,)) in probes


def test_rows_are_those_of_a_schedule() -> None:
    """Decodes first, pages of their own, real tokens; admitted once."""
    machine = Machine(lambda _: 1.0)
    measure(machine, [Probe(3, 40, (50, 20), 7)], num_repeats=1)
    first, *others = machine.seen
    assert [(row.start, row.num_tokens) for row in first.rows] == [(39, 1)] * 3 + [(7, 50), (7, 20)]
    assert (first.num_tokens, first.num_decode_rows) == (73, 3)
    pages = [page for row in first.rows for page in row.block_table.tolist()]
    assert sorted(pages) == list(range(3 * 3 + 4 + 2))
    assert [row.batch_slot for row in first.rows] == [0, 1, 2, 3, 4]
    assert all(len(row.token_ids or ()) == row.num_tokens for row in first.rows)
    assert all(0 <= token_id < 50 for row in first.rows for token_id in row.token_ids or ())
    assert [any(row.is_first for row in each.rows) for each in machine.seen] == [True] + [False] * len(others)


@pytest.mark.parametrize("is_overlapped", [False, True])
@pytest.mark.parametrize("num_stages", [1, 3])
def test_a_step_takes_what_a_decode_waits_for_its_next_token(num_stages: int, is_overlapped: bool) -> None:
    """All stages of a pipeline, with other microbatches behind it; the first run of a probe is 9 s too long, and does not count."""
    machine = Machine(lambda schedule: 0.3 + 9 * schedule.rows[0].is_first, num_stages)
    options = {"num_stages": num_stages, "is_overlapped": is_overlapped}
    (sample,) = measure(machine, [Probe(2, 10)], num_repeats=5, **options)
    assert (sample.median_s, sample.p99_s, sample.num_repeats) == (pytest.approx(0.3), pytest.approx(0.3), 5)


def test_a_slow_minute_is_not_one_probes_alone() -> None:
    """Every step takes three times as long for a while: with nine repeats in rounds of three, fewer than half of any probe's."""
    machine = Machine(lambda _: 0.1)
    machine._seconds = lambda _: 0.3 if 4 < machine.clock.now() < 16 else 0.1
    samples = measure(machine, [Probe(1, context) for context in range(1, 11)], num_repeats=9)
    assert [sample.median_s for sample in samples] == [pytest.approx(0.1)] * 10
    assert max(sample.p99_s for sample in samples) == pytest.approx(0.3)


def test_rounds_are_told() -> None:
    machine, rounds = Machine(lambda _: 0.1), []
    prober = StepProber(machine, machine.clock, LIMITS, is_overlapped=False)
    prober.measure([Probe(1, 1), Probe(2, 1)], 7, lambda: rounds.append(1))
    assert len(rounds) == 2 * num_rounds(7) == 6
