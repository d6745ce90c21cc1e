"""Weights that are no numbers are found wherever they are, and none are found where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.checkpoints.finite import check_finite
from sarathi_jax.errors import ModelError
from sarathi_jax.sharding.mesh import make_mesh


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


def test_every_shard_is_looked_at() -> None:
    mesh = make_mesh({"tensor": 4})
    good = jax.device_put(jnp.ones(32), jax.NamedSharding(mesh, jax.P("tensor")))
    check_finite({"a": good})
    with pytest.raises(ModelError, match="infinity in a:"):
        check_finite({"a": good.at[-1].set(jnp.inf)})
