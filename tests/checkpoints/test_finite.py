"""Weights that are no numbers are found wherever they are, and none are found where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sarathi_jax.checkpoints.finite import check_finite
from sarathi_jax.errors import ModelError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
def test_numbers_of_every_kind_pass(dtype: str) -> None:
    largest = jnp.asarray([float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).tiny), -0.0, 1.0], dtype)
    check_finite({"a": largest, "tokens": jnp.arange(4), "none": jnp.zeros((0, 4), dtype)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("place", [0, -1])
def test_one_that_is_none_is_named(value: float, dtype: str, place: int) -> None:
    bad = jnp.ones((3, 5), dtype).at[place, place].set(value)
    with pytest.raises(ModelError, match=r"got NaN or infinity in layers\.1\.up: .*check_weights=False"):
        check_finite({"layers.0.up": jnp.ones((3, 5), dtype), "layers.1.up": bad})


def test_a_few_are_named_and_the_others_counted() -> None:
    bad = jnp.full(4, jnp.nan)
    with pytest.raises(ModelError, match="in p0, p1, p2 and 4 more:"):
        check_finite({f"p{place}": bad for place in range(7)})


@pytest.mark.parametrize("place", [(0, 0), (3, 5), (7, 7)])
@pytest.mark.parametrize("spec", [P("tensor"), P(None, "tensor"), P(None, ("stage", "tensor")), P()])
@pytest.mark.parametrize("is_explicit", [False, True])
def test_every_shard_is_looked_at(spec: P, place: tuple[int, int], is_explicit: bool) -> None:
    kind = AxisType.Explicit if is_explicit else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("stage", "tensor"), axis_types=(kind, kind))
    good = np.ones((8, 8), np.float32)
    bad = good.copy()
    bad[place] = np.inf
    sharding = jax.NamedSharding(mesh, spec)
    check_finite({"a": jax.device_put(good, sharding)})
    with pytest.raises(ModelError, match="infinity in a:"):
        check_finite({"a": jax.device_put(bad, sharding)})
