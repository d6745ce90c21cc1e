"""Copying KV pages: the named ones and no others, whatever the cache holds, quantized or not.

Broken by hand in the GPU's kernel, once each, and caught: writing padding, the numbers of a page (of sources, of targets, and in the plan), 64 bits of
either, the mask of a page's last block, the number of a block, and source and target swapped.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.kernels import reference, registry, triton_launch
from sarathi_jax.kernels.gpu import INTERPRETER
from sarathi_jax.kernels.layer_kv import LayerKV

NUM_PAGES, PAGE_SIZE = 9, 4


@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize(
    ("sources", "targets"), [([3], [7]), ([3, 3, 0, 8], [1, 7, 5, NUM_PAGES]), ([0, 0], [NUM_PAGES] * 2)]
)
def test_named_pages_are_copied_and_no_others(
    implementation: str, sources: list[int], targets: list[int], is_quantized: bool
) -> None:
    rng, num_slots = np.random.default_rng(0), NUM_PAGES * PAGE_SIZE
    pages = rng.integers(-127, 128, (2, num_slots, 3, 200)).astype(np.int8 if is_quantized else np.float32)
    scales = rng.standard_normal((2, num_slots, 3)).astype(np.float32) if is_quantized else []
    ids = np.array(sources, np.int32), np.array(targets, np.int32)
    kv = LayerKV(*map(jnp.asarray, [*pages, *scales]))
    use = registry.use_on(jax.devices()[0], np.float32, 64)
    copy = registry.choose("copy_pages", use, implementation=implementation)
    got = jax.jit(copy, static_argnames="page_size")(kv, *map(jnp.asarray, ids), page_size=PAGE_SIZE)
    for array, before in zip(got, [*pages, *scales], strict=False):
        expected = reference.copy_pages(pages=before, sources=ids[0], targets=ids[1], page_size=PAGE_SIZE)
        np.testing.assert_array_equal(array, expected)


@pytest.mark.usefixtures("triton")
def test_pages_past_two_billion_numbers_are_copied() -> None:
    """By the GPU's kernel, from there and to there; the memory of such pages is only there where it is touched."""
    from sarathi_jax.kernels.copy_pages_triton import plan_launch

    size, num_pages = 64, 2**31 // 64 + 2
    pages = np.zeros((num_pages, size), np.int8)
    pages[-1] = 3
    ids = np.array([num_pages - 1], np.int32), np.array([num_pages - 2], np.int32)
    triton_launch.run_interpreted(plan_launch(1, num_pages, size, INTERPRETER), [pages, *ids], [])
    assert pages[-3:, -1].tolist() == [0, 3, 3]
