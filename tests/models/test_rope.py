"""Rotary embedding against the formulas of its papers, written out here by hand."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.models.config import RopeConfig
from sarathi_jax.models.rope import apply_rope, rope_angles, rope_frequencies

DIM = 8
FLOAT32 = 3e-7  # frequencies are float32 powers, as in the programs that models are trained with
BASE = [10000 ** (-2 * i / DIM) for i in range(DIM // 2)]  # 1, 0.1, 0.01, 0.001


def frequencies(max_length: int = 64, /, **options: Any) -> list[float]:
    return rope_frequencies(RopeConfig(**options), DIM, max_length)[0].tolist()


def test_default_is_a_geometric_series():
    assert frequencies() == pytest.approx([1, 0.1, 0.01, 0.001], rel=FLOAT32)
    assert rope_frequencies(RopeConfig(theta=500000.0), DIM, 64)[0][1] == pytest.approx(500000**-0.25)


def test_linear_divides_every_position():
    assert frequencies(kind="linear", factor=4.0) == pytest.approx([0.25, 0.025, 0.0025, 0.00025], rel=FLOAT32)


def test_dynamic_is_the_default_up_to_the_trained_length():
    options: dict[str, Any] = {"kind": "dynamic", "factor": 2.0, "original_max_position": 64}
    assert frequencies(64, **options) == pytest.approx(BASE, rel=FLOAT32)


def test_dynamic_stretches_the_base_past_it():
    """Base times (factor * length / trained - (factor - 1)) ** (D / (D - 2)): here 3 ** (4 / 3). The longest wavelength grows by exactly 3."""
    got = frequencies(128, kind="dynamic", factor=2.0, original_max_position=64)
    theta = 10000 * 3 ** (4 / 3)
    assert got == pytest.approx([theta ** (-2 * i / DIM) for i in range(4)], rel=FLOAT32)
    assert got[3] == pytest.approx(0.001 / 3, rel=FLOAT32)


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between():
    """Trained length 1000: waves turn 159, 15.9, 1.59 and 0.159 times in it; kept above 4 turns, divided by 8 below 1."""
    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    got = frequencies(kind="llama3", factor=8.0, original_max_position=1000, **limits)
    turns = 1000 * 0.01 / (2 * math.pi)
    share = (turns - 1) / 3
    assert got == pytest.approx([1, 0.1, 0.01 * (share + (1 - share) / 8), 0.001 / 8], rel=FLOAT32)


def test_yarn_ramps_over_dimensions_and_warms_attention():
    """Dimension d turns r times in 1000 tokens where d = 8 ln(1000 / (2 pi r)) / (2 ln 10000): 0.70 at 32 and 2.20 at 1; floor and ceil: 0 to 3."""
    rope = RopeConfig(kind="yarn", factor=4.0, original_max_position=1000)
    got, scale = rope_frequencies(rope, DIM, 64)
    stretched = [BASE[i] * ((1 - i / 3) + i / 3 / 4) for i in range(4)]
    assert got.tolist() == pytest.approx(stretched, rel=FLOAT32)
    assert scale == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_without_truncation_ramps_between_the_dimensions_themselves():
    rope = RopeConfig(kind="yarn", factor=4.0, original_max_position=1000, is_truncated=False, attention_factor=1.0)
    got, scale = rope_frequencies(rope, DIM, 64)
    low, high = (8 * math.log(1000 / (2 * math.pi * turns)) / (2 * math.log(10000)) for turns in (32, 1))
    ramp = [min(max((i - low) / (high - low), 0), 1) for i in range(4)]
    assert got.tolist() == pytest.approx([f * ((1 - r) + r / 4) for f, r in zip(BASE, ramp, strict=True)], rel=FLOAT32)
    assert scale == 1.0


def test_longrope_has_a_factor_a_pair_and_one_set_up_to_the_trained_length():
    options: dict[str, Any] = {
        "kind": "longrope",
        "original_max_position": 64,
        "attention_factor": 1.2,
        "short_factors": (1.0, 1.0, 2.0, 2.0),
        "long_factors": (1.0, 2.0, 4.0, 8.0),
    }
    assert frequencies(64, **options) == pytest.approx([1, 0.1, 0.005, 0.0005], rel=FLOAT32)
    assert frequencies(65, **options) == pytest.approx([1, 0.05, 0.0025, 0.000125], rel=FLOAT32)
    angles = rope_angles(RopeConfig(**options), DIM, jnp.array([0, 1]), 65)
    np.testing.assert_allclose(angles.cos[1], 1.2 * np.cos([1, 0.05, 0.0025, 0.000125]), rtol=0, atol=1e-6)


def test_what_is_not_rotated_has_angle_zero_whatever_the_rest_is_scaled_by():
    """Of 16 elements 8 are rotated: four pairs with the frequencies of a head of 8, and four that stay."""
    scaled = RopeConfig(kind="yarn", original_max_position=64, attention_factor=2.0)
    angles = rope_angles(scaled, 16, jnp.array([3]), 64, rotary_dim=DIM)
    np.testing.assert_allclose(angles.cos[0], [*2 * np.cos(3 * np.array(BASE)), 1, 1, 1, 1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(angles.sin[0], [*2 * np.sin(3 * np.array(BASE)), 0, 0, 0, 0], rtol=0, atol=1e-6)


def test_angles_are_position_times_frequency():
    positions = [0, 1, 7, 2047]
    angles = rope_angles(RopeConfig(), DIM, jnp.array(positions), 4096)
    exact = np.array(positions)[:, None] * np.array(BASE)
    np.testing.assert_allclose(angles.cos, np.cos(exact), rtol=0, atol=3e-4)  # 2047 rad at float32: 1e-4 rad
    np.testing.assert_allclose(angles.sin[:3], np.sin(exact)[:3], rtol=0, atol=2e-6)


def test_pairs_are_halves_apart_and_rotate_as_complex_numbers():
    x = np.random.default_rng(0).normal(size=(5, 3, DIM)).astype(np.float32)
    positions = np.array([0, 1, 2, 50, 9])
    got = np.asarray(apply_rope(jnp.asarray(x), rope_angles(RopeConfig(), DIM, jnp.asarray(positions), 64)))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * positions[:, None] * np.array(BASE))[:, None]
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], axis=-1), rtol=0, atol=2e-5)


def test_scores_depend_on_distance_alone():
    rng, rope = np.random.default_rng(1), RopeConfig(theta=100.0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, DIM)), jnp.float32) for _ in range(2))

    def score(q_position: int, k_position: int) -> float:
        rotated = [
            apply_rope(x, rope_angles(rope, DIM, jnp.array([p]), 64)) for x, p in ((q, q_position), (k, k_position))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_the_dtype_stays():
    x = jnp.ones((2, 1, DIM), jnp.bfloat16)
    assert apply_rope(x, rope_angles(RopeConfig(), DIM, jnp.arange(2), 64)).dtype == jnp.bfloat16
