"""Rotating queries and keys and writing KV: every implementation against complex numbers in float64; the right slots and no others, and in place.

Broken by hand in the GPU's kernel, once each, and caught: the pairing of a head's halves, the sign of the sine, rotating values too, the slot's 64 bits,
writing padding, a query head of the neighbouring group, a slot's KV head, the place of each second half, the scale of keys stored for values, of one
half only, of 128 steps and of zeros, rounding down, and not rounding to the model's numbers first.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.kernels import ragged_attention_xla, reference, registry, rope_write_xla, triton_launch
from sarathi_jax.kernels.gpu import INTERPRETER
from sarathi_jax.kernels.layer_kv import LayerKV

NUM_SLOTS, NUM_TOKENS = 64, 12
SHAPES = [(1, 3, 64), (2, 1, 8), (2, 4, 80), (4, 2, 16)]  # (K, G, D)


@pytest.fixture(scope="module")
def rope_and_write(implementation: str) -> Any:
    use = registry.use_on(jax.devices()[0], np.float32, 64)
    return registry.choose("rope_and_write_kv", use, implementation=implementation)


def judged(arrays: dict[str, Any]) -> list[Any]:
    """Queries, keys and values as they must be."""
    return list(reference.rope_and_write_kv(**arrays))


def draw_arrays(seed: int, num_real: int, shape: tuple[int, int, int], num_slots: int = NUM_SLOTS) -> dict[str, Any]:
    """The reference's arguments; tokens past the first num_real are NaN and go nowhere."""
    rng, (num_kv_heads, group, head_dim) = np.random.default_rng(seed), shape
    pages = rng.standard_normal((2, num_slots, num_kv_heads, head_dim)).astype(np.float32)
    qkv = rng.standard_normal((NUM_TOKENS, num_kv_heads, group + 2, head_dim)).astype(np.float32)
    qkv[num_real:] = np.nan
    slots = np.full(NUM_TOKENS, num_slots, np.int32)
    slots[:num_real] = rng.permutation(num_slots)[:num_real]
    positions = rng.integers(0, 4096, NUM_TOKENS).astype(np.int32)
    frequencies = 100.0 ** -np.linspace(0, 1, head_dim // 2)
    return {
        "qkv": qkv, "positions": positions, "frequencies": frequencies,
        "k_pages": pages[0], "v_pages": pages[1], "slot_mapping": slots,
    }  # fmt: skip


def call(function: Any, arrays: dict[str, Any], kv: LayerKV) -> tuple[Any, Any]:
    angles = arrays["positions"][:, None] * arrays["frequencies"][None, :]
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    pages = LayerKV(*map(jnp.asarray, kv.arrays))
    q, kv = jax.jit(function)(jnp.asarray(arrays["qkv"]), cos, sin, pages, jnp.asarray(arrays["slot_mapping"]))
    return np.asarray(q), [np.asarray(array) for array in kv.arrays]


@settings(max_examples=20)
@given(seed=st.integers(0, 999), num_real=st.integers(0, NUM_TOKENS), shape=st.sampled_from(SHAPES))
def test_queries_turn_and_named_slots_change_and_no_others(
    rope_and_write: Any, seed: int, num_real: int, shape: tuple[int, int, int]
) -> None:
    arrays = draw_arrays(seed, num_real, shape)
    expected_q, *expected = judged(arrays)
    q, kv = call(rope_and_write, arrays, LayerKV(arrays["k_pages"], arrays["v_pages"]))
    np.testing.assert_allclose(q[:num_real], expected_q[:num_real], rtol=0, atol=1e-5)
    for got, pages, before in zip(kv[:2], expected, (arrays["k_pages"], arrays["v_pages"]), strict=True):
        np.testing.assert_allclose(got, pages, rtol=0, atol=1e-5)
        untouched = np.setdiff1d(np.arange(NUM_SLOTS), arrays["slot_mapping"])
        np.testing.assert_array_equal(got[untouched], before[untouched])


def test_int8_is_the_nearest_of_255_steps(rope_and_write: Any) -> None:
    """The largest number of a token's head is stored exactly, the others to half a step; other slots keep their scales."""
    arrays = draw_arrays(0, NUM_TOKENS - 1, (2, 4, 80))
    arrays["qkv"][3, 1, -1] = 0  # a value of zeros has a scale to divide by
    pages: list[Any] = [np.zeros(arrays["k_pages"].shape, np.int8)] * 2
    scales: list[Any] = [np.full(arrays["k_pages"].shape[:2], 77, np.float32)] * 2
    _, kv = call(rope_and_write, arrays, LayerKV(*pages, *scales))
    _, *expected = judged(arrays)
    written = arrays["slot_mapping"][: NUM_TOKENS - 1]
    for got, scale, exact in zip(kv[:2], kv[2:], expected, strict=True):
        numbers = got[written].astype(np.float64)
        highest = np.abs(exact[written]).max(-1)
        np.testing.assert_allclose(scale[written], np.where(highest == 0, 1, highest / 127), rtol=1e-5)
        error = np.abs(numbers * scale[written][..., None] - exact[written])
        assert (error <= scale[written][..., None] * 0.5001).all()
        assert (np.delete(scale, written, axis=0) == 77).all()


def test_int8_scales_are_of_the_models_numbers(rope_and_write: Any) -> None:
    """Keys are rounded to the model's precision before they are quantized: the largest of a head, 127 times its scale, is one of its numbers."""
    arrays = draw_arrays(0, NUM_TOKENS, (2, 4, 80))
    arrays["qkv"] = arrays["qkv"].astype(np.float16)
    pages: list[Any] = [np.zeros(arrays["k_pages"].shape, np.int8)] * 2
    scales: list[Any] = [np.zeros(arrays["k_pages"].shape[:2], np.float32)] * 2
    _, kv = call(rope_and_write, arrays, LayerKV(*pages, *scales))
    highest = kv[2][arrays["slot_mapping"]] * 127
    np.testing.assert_allclose(highest, highest.astype(np.float16), rtol=1e-6)


def test_tokens_are_rounded_to_the_pages_dtype(rope_and_write: Any) -> None:
    arrays = draw_arrays(0, NUM_TOKENS, (2, 1, 8))
    _, kv = call(rope_and_write, arrays, LayerKV(*(arrays[name].astype(np.float16) for name in ("k_pages", "v_pages"))))
    _, *expected = judged(arrays)
    for got, pages in zip(kv[:2], expected, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, pages, rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("qkv", (12, 2, 3, 10), r"cos and sin must be \(12, 5\) for qkv \(12, 2, 3, 10\), got \(12, 4\)"),
        ("qkv", (12, 3, 3, 8), r"pages of k and v must be \(64, 3, 8\) for qkv .* got \(64, 2, 8\)"),
        ("slot_mapping", (11,), r"slot_mapping must be \(12,\) .* got \(11,\)"),
        ("qkv", (12, 2, 2, 8), "qkv must hold a query, a key and a value of each KV head"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    arrays: dict[str, Any] = {
        "qkv": jnp.zeros((12, 2, 3, 8)), "cos": jnp.zeros((12, 4)), "sin": jnp.zeros((12, 4)),
        "kv": LayerKV(*[jnp.zeros((64, 2, 8))] * 2), "slot_mapping": jnp.zeros(12, jnp.int32),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        rope_write_xla.rope_and_write_kv(**{**arrays, name: jnp.zeros(shape, arrays[name].dtype)})


@pytest.mark.usefixtures("triton")
def test_slots_past_two_billion_numbers_are_reached() -> None:
    """Of the GPU's kernel: pages of 2^31 + numbers; their memory is only there where it is touched."""
    from sarathi_jax.kernels.rope_write_triton import plan_launch

    num_slots, head_dim = (2**31 + 2**20) // 64, 64
    pages = [np.zeros((num_slots, 1, head_dim), np.int8) for _ in range(2)]
    scales = [np.zeros((num_slots, 1), np.float32) for _ in range(2)]
    qkv, slots = (
        np.arange(3 * head_dim, dtype=np.float32).reshape(1, 1, 3, head_dim),
        np.array([num_slots - 1], np.int32),
    )
    cos, sin = np.ones((1, head_dim // 2), np.float32), np.zeros((1, head_dim // 2), np.float32)
    launch = plan_launch(1, 1, 1, head_dim, num_slots, INTERPRETER, is_quantized=True)
    q = jax.ShapeDtypeStruct((1, 1, head_dim), jnp.float32)
    triton_launch.run_interpreted(launch, [*pages, *scales, qkv, cos, sin, slots], [q])
    assert [int(each[-1, 0, -1]) for each in pages] == [127, 127]
    assert [each[-1, 0] for each in scales] == pytest.approx([127 / 127, 191 / 127])


@pytest.mark.parametrize(("is_decode_only", "num_tokens"), [(True, 1), (True, 32), (False, 32)])
def test_two_layers_update_donated_pages_in_place(is_decode_only: bool, num_tokens: int) -> None:
    """Write, attend, write, attend, as a step does: each page array aliases its argument, and nothing as long as one is copied."""
    num_slots, num_rows = 4096, num_tokens

    def step(layers: Any, qkv: jax.Array, cos: jax.Array, slots: jax.Array, *rows: jax.Array) -> Any:
        written = []
        for kv in layers:
            q, kv = rope_write_xla.rope_and_write_kv(qkv, cos, cos, kv, slots)
            written.append(kv)
            fixed = {"page_size": 16, "scale": 0.25, "window": None, "soft_cap": None}
            out = ragged_attention_xla.ragged_paged_attention(q, kv, *rows, **fixed, is_decode_only=is_decode_only)
            qkv = jnp.concatenate([out, qkv[:, 0, -2:]], axis=1)[:, None]
        return written, qkv

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    pages: Any = jax.ShapeDtypeStruct((num_slots, 1, 16), jnp.float32)
    rows = ints(num_rows), ints(num_rows, 64), ints(num_rows + 1), ints()
    qkv, cos = (jax.ShapeDtypeStruct((num_tokens, *shape), jnp.float32) for shape in ((1, 5, 16), (8,)))
    lowered = jax.jit(step, donate_argnums=0).lower([LayerKV(pages, pages)] * 2, qkv, cos, ints(num_tokens), *rows)
    program = lowered.compile()
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None
    assert text is not None
    assert memory.alias_size_in_bytes == 4 * num_slots * 16 * 4
    assert re.findall(rf"= f32\[{num_slots},[^ ]* parameter\(", text)  # the pattern does find arrays of this size
    assert not re.findall(rf"= f32\[(?:{num_slots}|{num_slots // 16}),[^ ]* copy\(", text)
