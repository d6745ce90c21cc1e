"""Masks on the device: what is scattered where, and that each token is the best, or drawn from, those allowed: by the dense forward."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.execution.device_state import SlotState, masks_sizes, pack_masks, set_masks
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.structured import StructuredOutput

VOCAB, NUM_SEQS = 70, 12
GEOMETRY = Geometry(6, 4, 3, NUM_SEQS, 12, VOCAB)
SET_MASKS = jax.jit(set_masks)
RNG = np.random.default_rng(6)
PROMPTS = [RNG.integers(3, 37, size).tolist() for size in (1, 5, 41, 70)]


@settings(max_examples=30)
@given(slots=st.sets(st.integers(0, NUM_SEQS - 1), min_size=1), seed=st.integers(0, 99))
def test_words_go_to_their_slots_and_no_other_changes(slots: set[int], seed: int):
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 2**32, (NUM_SEQS, 3), np.uint32)
    masks = [(slot, rng.integers(0, 2**32, 3, np.uint32)) for slot in slots]
    packed = pack_masks(masks, GEOMETRY)
    assert len(packed) == (8 if len(slots) <= 8 else NUM_SEQS) * 4
    others = [jnp.asarray(rng.integers(0, 9, (NUM_SEQS, 2)).astype(np.int32)) for _ in SlotState._fields]
    after = SET_MASKS(SlotState(*others)._replace(allowed_bits=jnp.asarray(before)), jnp.asarray(packed))
    for slot, words in masks:
        before[slot] = words
    np.testing.assert_array_equal(np.asarray(after.allowed_bits), before)
    for name, old in zip(SlotState._fields, others, strict=True):
        if name != "allowed_bits":
            np.testing.assert_array_equal(np.asarray(getattr(after, name)), np.asarray(old))


def test_a_few_slots_have_a_size_of_their_own_where_there_are_more():
    assert masks_sizes(GEOMETRY) == {32: 8, 48: 12}
    assert masks_sizes(GEOMETRY._replace(max_num_seqs=5)) == {20: 5}


class Draws:
    """Allows some tokens at each place, as a seed has it; ends after so many. allowed: at each place so far."""

    def __init__(self, seed: int, count: int = 14, num_taken: int = 0) -> None:
        self.seed, self.count, self.num_taken = seed, count, num_taken

    @property
    def is_ended(self) -> bool:
        return self.num_taken == self.count

    def allowed(self, place: int) -> list[int]:
        rng = np.random.default_rng([self.seed, place])
        return sorted(rng.choice(np.arange(3, 37), rng.integers(1, 9), replace=False).tolist())

    def mask(self) -> np.ndarray:
        words = np.zeros(2, np.uint32)
        for token_id in self.allowed(self.num_taken):
            words[token_id // 32] |= np.uint32(1) << np.uint32(token_id % 32)
        return words

    def accept(self, token_id: int) -> bool:
        assert token_id in self.allowed(self.num_taken)
        self.num_taken += 1
        return True

    def copy(self) -> "Draws":
        return Draws(self.seed, self.count, self.num_taken)


def run(tiny: Any, calls: list[tuple[int, dict[str, Any]]], **options: Any) -> list[list[Any]]:
    """calls: (seed, sampling options); even seeds are constrained. Returns: the samples of each."""
    engine = tiny.engine(**options)
    for seed, sampling in calls:
        constraint = None if seed % 2 else Draws(seed)
        form = {} if constraint is None else {"structured": StructuredOutput(regex="any")}
        params = SamplingParams(**{"max_tokens": 20, "seed": seed, **form, **sampling})
        engine.add_request(PROMPTS[seed % 4], params, request_id=str(seed), constraint=constraint)
    outputs: dict[str, Any] = {}
    while engine.has_unfinished:
        outputs |= {event.request_id: event.output.outputs for event in engine.step() if event.output is not None}
    engine.scheduler.check_integrity()
    return [outputs[str(seed)] for seed, _ in calls]


@pytest.mark.parametrize("overlap", [True, False])
def test_each_token_is_the_best_of_those_allowed(tiny: Any, overlap: bool):
    calls = [(seed, {"temperature": 0.0}) for seed in range(8)]
    for (seed, _), (sample,) in zip(calls, run(tiny, calls, overlap=overlap), strict=True):
        if seed % 2:
            continue
        prompt = PROMPTS[seed % 4]
        assert (len(sample.token_ids), sample.finish_reason) == (14, "stop")
        logits = tiny.logits([*prompt, *sample.token_ids])[len(prompt) - 1 : -1]
        for place, (token_id, row) in enumerate(zip(sample.token_ids, logits, strict=True)):
            allowed = Draws(seed).allowed(place)
            assert row[token_id] >= max(row[each] for each in allowed) - 1e-4


# Log-probabilities make a step of those without a constraint one of the kind that is compiled here.
SAMPLED = [(seed, {"n": 1 + seed % 3, "temperature": 1.0, "logprobs": 0}) for seed in range(6)]


@pytest.mark.parametrize(
    "options",
    [
        {"overlap": False},
        {"max_num_seqs": 1},
        {"token_budget": 8},
        {"long_prefill_token_threshold": 7, "is_prefix_caching": False},
        {"preempt_every_steps": 2},
        {"preempt_every_steps": 3, "overlap": False},
        {"num_pages": 26},
    ],
    ids=str,
)
def test_drawn_tokens_are_the_same_however_they_are_scheduled(tiny: Any, options: dict[str, Any]):
    expected = [[each.token_ids for each in samples] for samples in run(tiny, SAMPLED)]
    assert [[each.token_ids for each in samples] for samples in run(tiny, SAMPLED, **options)] == expected
    assert len({tuple(tokens) for samples in expected for tokens in samples}) == 12


def test_neighbours_are_as_they_are_alone(tiny: Any):
    together = run(tiny, SAMPLED)
    for call, samples in zip(SAMPLED, together, strict=True):
        assert [each.token_ids for each in run(tiny, [call])[0]] == [each.token_ids for each in samples]


def test_log_probabilities_are_the_models_own(tiny: Any):
    """A mask changes what is drawn, and not what the model says of it."""
    for (seed, _), (sample,) in zip([(2, {})], run(tiny, [(2, {"logprobs": 3})]), strict=True):
        prompt = PROMPTS[seed % 4]
        expected = tiny.logprobs([*prompt, *sample.token_ids])[len(prompt) - 1 : -1]
        for token_id, got, row in zip(sample.token_ids, sample.logprobs, expected, strict=True):
            assert got.logprob == pytest.approx(row[token_id], abs=1e-4)
            assert [each for each, _ in got.top] == np.argsort(-row)[:3].tolist()


def test_masks_are_set_anew_after_a_fault(tiny: Any):
    """They live in the state that a failed step takes along."""
    calls = [(seed, {"temperature": 0.0}) for seed in range(4)]
    sound = run(tiny, calls)
    count = 0

    def wrap(step: Any) -> Any:
        def failing(params: Any, state: Any, packed: Any) -> Any:
            nonlocal count
            count += 1
            if count in (3, 9):
                jax.tree.map(lambda array: array.delete(), state)
                raise jax.errors.JaxRuntimeError("INTERNAL: injected")
            return step(params, state, packed)

        return failing

    shaken = run(tiny.with_steps(wrap), calls)
    assert count > 9
    assert [each[0].token_ids for each in shaken] == [each[0].token_ids for each in sound]
