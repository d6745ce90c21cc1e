"""What lives on the device: its shapes, shardings and size; slots set up one at a time with what a request asks for."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.execution.device_state import (
    MAX_STOP_IDS,
    SlotState,
    abstract_state,
    kv_bytes_per_page,
    make_state,
    pack_slot,
    set_slot,
)
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.models import ModelConfig
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON

VOCAB = 70
GEOMETRY = Geometry(num_pages=6, page_size=4, blocks_per_row=3, max_num_seqs=3, max_model_len=12, vocab_size=VOCAB)
MODEL = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=12,
)
SET_SLOT = jax.jit(set_slot)


def state(tensor: int = 1, dtype: str = "bfloat16") -> Any:
    model_state = abstract_model(MODEL, jnp.dtype("float32"), make_mesh({"tensor": tensor}), MEGATRON)
    return abstract_state(model_state, GEOMETRY, jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_pages_are_cut_over_kv_heads_and_cost_what_the_plan_says(tensor: int, dtype: str):
    """Two layers of keys and values, 2 bytes a number; or 1, and 4 more a token and head."""
    arrays = jax.tree.leaves(state(tensor, dtype).layers)
    scales = [(24, 2)] * 2 if dtype == "int8" else []
    assert [array.shape for array in arrays] == [*[(24, 2, 8)] * 2, *scales] * 2
    on_each = sum(math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize for array in arrays)
    assert on_each == 6 * kv_bytes_per_page(MODEL, 4, dtype, tensor)
    assert on_each == 4 * 24 * 2 * {"bfloat16": 16, "int8": 12}[dtype] // tensor


def test_a_new_state_is_all_zeros():
    assert not any(np.asarray(leaf, np.float32).any() for leaf in jax.tree.leaves(make_state(state())))


def filled() -> SlotState:
    """Slots full of what others left."""
    return jax.tree.map(lambda spec: jnp.full(spec.shape, 9, spec.dtype), state().slots)


def set_up(slot: int, sampling: SamplingParams, context: Any = (), eos: tuple[int, ...] = ()) -> SlotState:
    packed = pack_slot(slot, np.array(context, np.int32), sampling, eos, GEOMETRY)
    return SET_SLOT(filled(), jnp.asarray(packed))


def allowed_ids(slots: SlotState, slot: int) -> set[int]:
    words = np.asarray(slots.allowed_bits)[slot].tolist()
    return {token for token in range(32 * len(words)) if words[token // 32] >> (token % 32) & 1}


@settings(max_examples=30)
@given(
    st.integers(0, 2),
    st.none() | st.sets(st.integers(0, VOCAB - 1), min_size=1),
    st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), max_size=5),
    st.lists(st.integers(0, VOCAB - 1), max_size=12),
)
def test_a_slot_holds_what_its_request_asks_for(slot: int, allowed: Any, bias: dict[int, float], context: list[int]):
    slots = set_up(slot, SamplingParams(allowed_token_ids=allowed and tuple(allowed), logit_bias=bias), context)
    ids, values = np.asarray(slots.bias_ids)[slot].tolist(), np.asarray(slots.bias_values)[slot].tolist()
    assert dict(zip(ids[: len(bias)], values, strict=False)) == bias
    assert set(ids[len(bias) :]) == {VOCAB}
    assert np.asarray(slots.history)[slot].tolist() == [*context, *[0] * (13 - len(context))]
    assert allowed_ids(slots, slot) == (set(range(96)) if allowed is None else allowed)


def test_no_other_slot_changes_and_the_last_token_stays():
    before, after = filled(), set_up(1, SamplingParams(logit_bias={1: 2.0}, allowed_token_ids=(3,)))
    assert np.asarray(after.last_tokens).tolist() == [9, 9, 9]
    for name, old, new in zip(SlotState._fields, before, after, strict=True):
        np.testing.assert_array_equal(np.asarray(old)[[0, 2]], np.asarray(new)[[0, 2]], err_msg=name)


def test_stop_ids_are_the_models_and_the_requests_own():
    slots = set_up(2, SamplingParams(stop_token_ids=(5, 7)), eos=(7, 2))
    assert np.asarray(slots.stop_ids)[2].tolist() == [7, 2, 5, *[VOCAB] * (MAX_STOP_IDS - 3)]
