"""Draws: greedy, seeded sampling, their independence of the batch, and their distribution (chi-square against float64 probabilities)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.execution.sampling import SamplingControls, greedy, race, sample, times_of

SAMPLE, GREEDY = jax.jit(sample), jax.jit(greedy)
RNG = np.random.default_rng


def controls(
    num_rows: int,
    *,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    seed: Any = 0,
    position: Any = 0,
):
    """Each option is one number for all rows, or one per row; row i has seed + i if the seed is one number."""

    def column(value: Any, dtype: Any):
        return jnp.asarray(np.broadcast_to(np.asarray(value, dtype), (num_rows,)))

    seeds = np.zeros((num_rows, 2), np.uint32)
    seeds[:, 0] = seed + np.arange(num_rows) if np.ndim(seed) == 0 else seed
    return SamplingControls(
        column(temperature, np.float32),
        column(top_k, np.int32),
        column(top_p, np.float32),
        column(min_p, np.float32),
        jnp.asarray(seeds),
        column(position, np.int32),
    )


def rows_are(place: int, column: Any) -> np.ndarray:
    """bool[64] or bool[64, 1]: true in one row."""
    return (np.arange(64) == place).reshape(64, *[1] * (column.ndim - 1))


def oracle_probabilities(
    logits: Any, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
):
    """Hugging Face's order by full sorting in float64; equal logits stay together."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    if 0 < top_k < len(scaled):
        scaled = np.where(scaled >= scaled[order[top_k - 1]], scaled, -np.inf)
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    last = np.searchsorted(np.cumsum(probabilities[order]), top_p - 1e-12)
    probabilities = np.where(probabilities >= probabilities[order[min(last, len(order) - 1)]], probabilities, 0)
    probabilities = np.where(probabilities >= min_p * probabilities.max(), probabilities, 0)
    return probabilities / probabilities.sum()


def chi_square_excess(counts: np.ndarray, probabilities: Any):
    """(chi-square - degrees of freedom) in standard deviations; tokens expected under 5 times are one class."""
    expected = probabilities * counts.sum()
    is_rare = expected < 5
    observed = np.append(counts[~is_rare], counts[is_rare].sum())
    expected = np.append(expected[~is_rare], max(expected[is_rare].sum(), 1e-9))
    freedom = len(expected) - 1 - (expected[-1] < 1e-8)
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("vocab_size", [1, 2, 13, 127, 128, 129, 300, 1000])
def test_greedy_is_the_largest_logit(vocab_size: int):
    logits = RNG(vocab_size).normal(size=(5, vocab_size)).astype(np.float32)
    np.testing.assert_array_equal(GREEDY(logits).token_ids, np.argmax(logits, axis=1))


def test_greedy_takes_the_lowest_id_of_equal_logits():
    logits = np.array([[0, 3, 3], [2, 2, 2], [-1, -np.inf, -1], [-np.inf, -5, -5], [3, 0, 3], [0, 0, 1]], np.float32)
    assert GREEDY(logits).token_ids.tolist() == [1, 0, 0, 1, 0, 2]
    assert SAMPLE(logits, controls(6, temperature=0)).token_ids.tolist() == [1, 0, 0, 1, 0, 2]


@pytest.mark.parametrize("run", [GREEDY, lambda x: SAMPLE(x, controls(len(x), top_k=2, top_p=0.5, min_p=0.1))])
def test_broken_rows_are_named_and_harm_no_other(run: Any):
    nan, inf = np.nan, np.inf
    logits = np.array([[1, nan, 2], [1, inf, 2], [-inf] * 3, [nan] * 3, [-inf, 9, -inf], [1, 2, 900]], np.float32)
    result = run(logits)
    assert result.is_finite.tolist() == [False, False, False, False, True, True]
    assert result.token_ids[4:].tolist() == [1, 2]
    assert all(0 <= token < 3 for token in result.token_ids.tolist())


@pytest.mark.parametrize("first", [0, 64, 128, 136])
@pytest.mark.parametrize("nan", [np.float32("nan"), -np.float32("nan")])
def test_nan_is_seen_wherever_it_stands(first: int, nan: np.float32):
    """A vectorised maximum may pass over it."""
    logits = RNG(0).normal(size=(64, 200)).astype(np.float32)
    logits[np.arange(64), first + np.arange(64)] = nan
    assert not GREEDY(logits).is_finite.any()
    assert not SAMPLE(logits, controls(64)).is_finite.any()


def test_greedy_rows_stay_greedy_in_a_mixed_batch():
    logits = RNG(1).normal(size=(64, 200)).astype(np.float32)
    temperature = np.where(np.arange(64) % 2, 5.0, 0.0)
    tokens = np.asarray(SAMPLE(logits, controls(64, temperature=temperature, top_p=0.9)).token_ids)
    is_greedy = tokens == np.argmax(logits, axis=1)
    assert is_greedy[::2].all()
    assert not is_greedy[1::2].all()


@pytest.mark.parametrize("temperature", [2e-5, 1e-3])
def test_tiny_temperature_takes_the_largest(temperature: float):
    logits = RNG(2).normal(size=(64, 200)).astype(np.float32)
    tokens = SAMPLE(logits * np.float32(1e4), controls(64, temperature=temperature)).token_ids
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=1))


def test_extreme_logits_are_drawn_without_overflow():
    logits = np.array([[3e38, -3e38, 3e38], [-3e38, -3.1e38, -np.inf], [1e-45, -np.inf, -np.inf]] * 2, np.float32)
    result = SAMPLE(logits, controls(6, temperature=[100.0] * 3 + [1e-5] * 3, top_p=0.99))
    assert result.is_finite.all()
    assert set(result.token_ids[::3].tolist()) <= {0, 2}
    assert result.token_ids.tolist()[1:3] + result.token_ids.tolist()[4:] == [0] * 4


CASES = {
    "plain": {},
    "hot": {"temperature": 100.0},
    "cool": {"temperature": 0.5},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.2},
    "all": {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("vocab_size", [20, 333])
def test_draws_follow_the_distribution(vocab_size: int, options: dict[str, Any]):
    logits = RNG(vocab_size).normal(size=vocab_size).astype(np.float32)
    logits[vocab_size // 2] = -np.inf
    probabilities = oracle_probabilities(logits, **options)
    tokens = SAMPLE(np.tile(logits, (24_000, 1)), controls(24_000, seed=11, position=3, **options)).token_ids
    counts = np.bincount(tokens, minlength=vocab_size)
    assert counts[probabilities == 0].sum() == 0
    assert abs(chi_square_excess(counts, probabilities)) < 4


def test_draws_at_successive_positions_follow_the_distribution():
    logits = RNG(5).normal(size=20).astype(np.float32)
    tokens = SAMPLE(
        np.tile(logits, (24_000, 1)), controls(24_000, seed=np.full(24_000, 9), position=np.arange(24_000))
    ).token_ids
    counts = np.bincount(tokens, minlength=20)
    assert abs(chi_square_excess(counts, oracle_probabilities(logits))) < 4
    pairs = np.bincount(np.asarray(tokens[:-1]) * 20 + np.asarray(tokens[1:]), minlength=400)
    assert abs(chi_square_excess(pairs, np.outer(counts, counts).ravel() / 24_000**2)) < 5


def test_a_token_of_no_probability_is_never_drawn():
    logits = np.full((24_000, 333), -np.inf, np.float32)
    rows = np.arange(24_000)
    logits[rows, rows % 333], logits[rows, (rows * 7 + 1) % 333] = 0.0, -1.0
    tokens = np.asarray(SAMPLE(logits, controls(24_000)).token_ids)
    assert np.isfinite(logits[rows, tokens]).all()
    assert (logits[rows, tokens] == -1).any()


# The shortest and the longest that are ever drawn.
SHORTEST, LONGEST = 0.5 * 2.0**-32, 24 * np.log(2)


@given(st.integers(0, 2**31), st.floats(0.05, 1), st.sampled_from([SHORTEST, 1.0, LONGEST]))
def test_a_column_of_no_weight_never_wins(seed: int, density: float, time: float):
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=(3, 1000)) ** 8 * (rng.random((3, 1000)) < density)
    weights[:, 500] += 1e-30
    columns = jax.jit(race)(weights.astype(np.float32), np.full((3, 1000), time, np.float32))
    assert (weights[np.arange(3), columns] > 0).all()


def test_times_reach_from_the_shortest_to_the_longest():
    bits = np.array([0, 1, 2**20, 2**31, 2**32 - 1], np.uint32)
    exact = -np.log1p(-np.minimum((bits.astype(np.float64) + 0.5) / 2**32, 1 - 2.0**-24))
    times = np.asarray(jax.jit(times_of)(bits))
    assert (times[0], times[-1]) == (np.float32(SHORTEST), np.float32(LONGEST))
    np.testing.assert_allclose(times, exact, rtol=1e-6)


def test_who_needs_least_time_for_its_weight_wins():
    weights, times = RNG(0).random((64, 333)), RNG(1).exponential(size=(64, 333))
    columns = jax.jit(race)(weights.astype(np.float32), times.astype(np.float32))
    np.testing.assert_array_equal(columns, np.argmin(times / weights, axis=1))


def test_rare_tokens_are_drawn_at_their_rate():
    logits = np.full(333, np.float32(np.log(1e-5)))
    logits[150] = 0.0
    tokens = np.asarray(SAMPLE(np.tile(logits, (24_000, 1)), controls(24_000)).token_ids)
    rare = tokens[tokens != 150]
    assert abs(len(rare) - 24_000 * 332e-5) < 4 * np.sqrt(80)
    assert len(set(rare.tolist())) > len(rare) / 2


@pytest.mark.parametrize("place", [150, 7])
def test_what_is_next_to_impossible_is_not_drawn(place: int):
    """A time of 0, or of 2^-23, would let any token win, however improbable: five times in these draws."""
    logits = np.full(333, np.float32(np.log(1e-13)))
    logits[place] = 0.0
    for seed in range(0, 480_000, 24_000):
        tokens = SAMPLE(np.tile(logits, (24_000, 1)), controls(24_000, seed=seed)).token_ids
        assert (np.asarray(tokens) == place).all()


@pytest.mark.parametrize("vocab_size", [512, 32_000])
@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.9}], ids=["plain", "top_k", "top_p"])
def test_last_bits_of_logits_seldom_change_a_token(vocab_size: int, options: dict[str, Any]):
    """Two draws that differ as seldom as can be do so with half the sum of the probabilities' differences. These: 1.2 to 1.9 times that.

    Draws from cumulative weights, in the same two stages: 4 to 10 times with 512 tokens, 11 to 24 with 32,000.
    """
    rng, num_draws = RNG(vocab_size), 4_000
    logits = (rng.normal(size=(20, vocab_size)) * 2.5).astype(np.float32)
    logits[:, :20] += rng.normal(size=(20, 20)).astype(np.float32) * 2 + 4
    moved = logits + (rng.normal(size=logits.shape) * 1e-2).astype(np.float32)
    distance = [
        np.abs(oracle_probabilities(one, **options) - oracle_probabilities(other, **options)).sum() / 2
        for one, other in zip(logits, moved, strict=True)
    ]
    num_other = 0
    for one, other in zip(logits, moved, strict=True):
        seeds = controls(num_draws // 20, seed=rng.integers(2**31), **options)
        drawn = [SAMPLE(np.tile(each, (num_draws // 20, 1)), seeds).token_ids for each in (one, other)]
        num_other += int((drawn[0] != drawn[1]).sum())
    expected = num_draws * np.mean(distance)
    assert num_other <= 2 * expected + 4 * np.sqrt(2 * expected)


@given(st.integers(0, 63), st.integers(0, 2**31 - 1), st.sampled_from([13, 200]), st.data())
def test_a_row_alone_or_anywhere_in_a_batch_draws_the_same(place: int, seed: int, vocab_size: int, data: st.DataObject):
    logits = RNG(seed).normal(size=(64, vocab_size)).astype(np.float32) * 3
    options = {
        "temperature": data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.0])),
        "top_k": data.draw(st.sampled_from([0, 1, 20])),
        "top_p": data.draw(st.sampled_from([1.0, 0.9, 0.3])),
        "min_p": data.draw(st.sampled_from([0.0, 0.1])),
    }
    others = {"temperature": RNG(1).uniform(0, 2, 64), "top_k": RNG(2).integers(0, 9, 64), "top_p": RNG(3).random(64)}
    batch = controls(64, **others, seed=RNG(seed).integers(0, 2**31, 64), position=np.arange(64))
    alone = controls(1, **options, seed=np.array([seed]), position=place)
    mixed = jax.tree.map(lambda many, one: np.where(rows_are(place, many), one, many), batch, alone)
    assert SAMPLE(logits, mixed).token_ids[place] == SAMPLE(logits[place : place + 1], alone).token_ids[0]


def test_seed_and_position_both_matter():
    logits = np.zeros((64, 200), np.float32)
    base = controls(64, seed=np.full(64, 5), position=np.full(64, 5))
    words = np.stack([np.full(64, 5), np.arange(64)], axis=1).astype(np.uint32)
    assert len(set(SAMPLE(logits, base).token_ids.tolist())) == 1
    assert len(set(SAMPLE(logits, base._replace(position=np.arange(64, dtype=np.int32))).token_ids.tolist())) > 40
    assert len(set(SAMPLE(logits, base._replace(seed=words)).token_ids.tolist())) > 40


def test_the_times_are_those_of_jax_random():
    """Two tokens in the first of two blocks: the race is among the numbers of fold_in(key(seed), position) that follow those of the blocks."""
    logits = np.full((64, 200), -np.inf, np.float32)
    logits[:, [3, 90]] = np.log([0.3, 0.7])
    tokens = SAMPLE(logits, controls(64, seed=70, position=17)).token_ids
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 17))(70 + np.arange(64))
    bits = np.asarray(jax.vmap(lambda key: jax.random.bits(key, (2 + 128,)))(keys), np.float64)
    times = -np.log1p(-(bits[:, 2:] + 0.5) / 2**32)
    assert tokens.tolist() == np.where(times[:, 3] / 0.3 < times[:, 90] / 0.7, 3, 90).tolist()
