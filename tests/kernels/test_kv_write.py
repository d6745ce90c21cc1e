"""Writing a step's KV: the right slots and no others, and in place."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.kernels import reference, registry

NUM_SLOTS, NUM_TOKENS, NUM_HEADS, HEAD_DIM = 64, 12, 2, 8
IMPLEMENTATIONS = registry.OPERATIONS["write_kv"]


def draw_arrays(seed: int, num_real: int, dtype: Any = np.float32) -> dict[str, Any]:
    """Pages and tokens; the tokens past the first num_real are NaN and go nowhere."""
    rng = np.random.default_rng(seed)
    pages = rng.standard_normal((2, NUM_SLOTS, NUM_HEADS, HEAD_DIM)).astype(dtype)
    tokens = rng.standard_normal((2, NUM_TOKENS, NUM_HEADS, HEAD_DIM)).astype(np.float32)
    tokens[:, num_real:] = np.nan
    slots = np.full(NUM_TOKENS, NUM_SLOTS, np.int32)
    slots[:num_real] = rng.permutation(NUM_SLOTS)[:num_real]
    return {"k_pages": pages[0], "v_pages": pages[1], "k": tokens[0], "v": tokens[1], "slot_mapping": slots}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(seed=st.integers(0, 999), num_real=st.integers(0, NUM_TOKENS))
def test_named_slots_change_and_no_others(name: str, seed: int, num_real: int) -> None:
    arrays = draw_arrays(seed, num_real)
    got = IMPLEMENTATIONS[name].function(**{key: jnp.asarray(array) for key, array in arrays.items()})
    for pages, expected in zip(got, reference.write_kv(**arrays), strict=True):
        np.testing.assert_array_equal(pages, expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_tokens_are_rounded_to_the_pages_dtype(name: str) -> None:
    arrays = draw_arrays(0, NUM_TOKENS, jnp.bfloat16)
    got = IMPLEMENTATIONS[name].function(**{key: jnp.asarray(array) for key, array in arrays.items()})
    for pages, expected in zip(got, reference.write_kv(**arrays), strict=True):
        np.testing.assert_array_equal(pages.astype(np.float32), expected.astype(np.float32))


def test_tokens_of_other_heads_are_refused() -> None:
    arrays = draw_arrays(0, 3) | {"v": np.zeros((NUM_TOKENS, NUM_HEADS + 1, HEAD_DIM), np.float32)}
    with pytest.raises(ValueError, match=r"k and v must be \(12, 2, 8\), one row a slot, .* v \(12, 3, 8\)"):
        IMPLEMENTATIONS["xla"].function(**arrays)


@pytest.mark.parametrize(("is_decode_only", "num_tokens"), [(True, 1), (True, 32), (False, 32)])
def test_two_layers_update_donated_pages_in_place(is_decode_only: bool, num_tokens: int) -> None:
    """Write, attend, write, attend, as a step does: each page array aliases its argument, and nothing as long as one is copied."""
    num_slots, num_rows = 4096, num_tokens
    attend = registry.OPERATIONS["ragged_paged_attention"]["xla"].function

    def step(layers: Any, q: jax.Array, slots: jax.Array, *rows: jax.Array) -> Any:
        written = []
        for k_pages, v_pages in layers:
            written.append(IMPLEMENTATIONS["xla"].function(k_pages, v_pages, q[:, :1], q[:, 1:2], slots))
            fixed = {"page_size": 16, "scale": 0.25, "window": None, "soft_cap": None}
            q = attend(q, *written[-1], *rows, **fixed, is_decode_only=is_decode_only)
        return written, q

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    pages = jax.ShapeDtypeStruct((num_slots, 1, 16), jnp.float32)
    rows = ints(num_rows), ints(num_rows, 64), ints(num_rows + 1), ints()
    q = jax.ShapeDtypeStruct((num_tokens, 3, 16), jnp.float32)
    lowered = jax.jit(step, donate_argnums=0).lower([(pages, pages)] * 2, q, ints(num_tokens), *rows)
    program = lowered.compile()
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None
    assert text is not None
    assert memory.alias_size_in_bytes == 4 * num_slots * 16 * 4
    assert re.findall(rf"= f32\[{num_slots},[^ ]* parameter\(", text)  # the pattern does find arrays of this size
    assert not re.findall(rf"= f32\[(?:{num_slots}|{num_slots // 16}),[^ ]* copy\(", text)
