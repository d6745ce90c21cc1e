"""A request's options survive the way to the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.execution.sampling import unpack_sampling_rows
from sarathi_jax.execution.sampling_row import NUM_SAMPLING_COLUMNS, SamplingColumn, pack_sampling_row
from sarathi_jax.sampling_params import GREEDY_TEMPERATURE, SamplingParams

PARAMS = SamplingParams(
    temperature=0.7,
    top_k=50,
    top_p=0.9,
    min_p=0.05,
    repetition_penalty=1.2,
    presence_penalty=-0.5,
    frequency_penalty=0.25,
)


def test_every_option_comes_back():
    row = pack_sampling_row(PARAMS, seed=5)
    controls, penalties = jax.jit(unpack_sampling_rows)(row[None], jnp.array([9]))
    values = [controls.temperature, controls.top_p, controls.min_p, *penalties]
    np.testing.assert_array_equal(np.concatenate(values), np.array([0.7, 0.9, 0.05, 1.2, -0.5, 0.25], np.float32))
    assert controls.top_k.tolist() == [50]
    assert controls.position.tolist() == [9]


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1])
def test_all_64_bits_of_the_seed_come_back(seed: int):
    controls, _ = unpack_sampling_rows(jnp.asarray(pack_sampling_row(PARAMS, seed))[None], jnp.array([0]))
    low, high = np.asarray(controls.seed[0], np.uint64)
    assert int(low) + (int(high) << 32) == seed


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_of_more_bits_is_refused(seed: int):
    with pytest.raises(AssertionError, match="two 32-bit words"):
        pack_sampling_row(PARAMS, seed)


def test_the_row_is_int32_and_as_wide_as_its_names():
    row = pack_sampling_row(PARAMS, 3)
    assert row.dtype == np.int32
    assert row.shape == (NUM_SAMPLING_COLUMNS,) == (max(SamplingColumn) + 1,)
    assert row[SamplingColumn.SEED_LOW] == 3


def test_greedy_is_exact():
    almost = SamplingParams(temperature=GREEDY_TEMPERATURE * (1 - 1e-12))
    assert pack_sampling_row(almost, 0)[SamplingColumn.TEMPERATURE] == 0
    drawn = SamplingParams(temperature=GREEDY_TEMPERATURE)
    controls, _ = unpack_sampling_rows(jnp.asarray(pack_sampling_row(drawn, 0))[None], jnp.array([0]))
    assert (controls.temperature >= GREEDY_TEMPERATURE).all()
