"""Copying KV pages: the named ones and no others, whatever the cache holds, quantized or not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.kernels import reference, registry
from sarathi_jax.kernels.layer_kv import LayerKV

NUM_PAGES, PAGE_SIZE = 9, 4
IMPLEMENTATIONS = registry.OPERATIONS["copy_pages"]


@pytest.fixture(scope="module", params=list(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> Any:
    use = registry.use_on(jax.devices()[0], np.float32, 64)
    if obstacle := IMPLEMENTATIONS[request.param].obstacle(use):
        pytest.skip(f"{request.param} does not run here: {obstacle}")
    return registry.choose("copy_pages", use, implementation=request.param)


@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize(
    ("sources", "targets"), [([3], [7]), ([3, 3, 0, 8], [1, 7, 5, NUM_PAGES]), ([0, 0], [NUM_PAGES] * 2)]
)
def test_named_pages_are_copied_and_no_others(
    implementation: Any, sources: list[int], targets: list[int], is_quantized: bool
) -> None:
    rng, num_slots = np.random.default_rng(0), NUM_PAGES * PAGE_SIZE
    pages = rng.integers(-127, 128, (2, num_slots, 3, 200)).astype(np.int8 if is_quantized else np.float32)
    scales = rng.standard_normal((2, num_slots, 3)).astype(np.float32) if is_quantized else []
    ids = np.array(sources, np.int32), np.array(targets, np.int32)
    kv = LayerKV(*map(jnp.asarray, [*pages, *scales]))
    got = jax.jit(implementation, static_argnames="page_size")(kv, *map(jnp.asarray, ids), page_size=PAGE_SIZE)
    for array, before in zip(got, [*pages, *scales], strict=False):
        expected = reference.copy_pages(pages=before, sources=ids[0], targets=ids[1], page_size=PAGE_SIZE)
        np.testing.assert_array_equal(array, expected)
