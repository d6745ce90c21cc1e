"""Weight products: the right axes are contracted, biases added, axis names kept, and all go through a `LinearMethod`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sarathi_jax.models.layers import RMSNorm
from sarathi_jax.models.linear import Linear


def make(in_shape: tuple[int, ...], out_shape: tuple[int, ...], **options: Any) -> Linear:
    axes: Any = [("embed", None, "heads")[: len(shape)] for shape in (in_shape, out_shape)]
    return Linear(in_shape, out_shape, *axes, rngs=nnx.Rngs(0), dtype=options.pop("dtype", jnp.float32), **options)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_one_axis_to_several():
    layer, x = make((6,), (2, 3, 4)), random(5, 6)
    expected = np.einsum("te,ekgd->tkgd", np.float64(x), np.float64(layer.kernel[...]))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=0, atol=1e-5)


def test_several_axes_to_one():
    layer, x = make((2, 3), (6,)), random(5, 2, 3)
    expected = np.einsum("thd,hde->te", np.float64(x), np.float64(layer.kernel[...]))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=0, atol=1e-5)


def test_the_bias_is_added_to_every_token():
    layer, x, bias = make((6,), (2, 4), has_bias=True), random(5, 6), random(2, 4)
    assert layer.bias is not None
    assert not layer.bias[...].any()
    plain = np.asarray(layer(jnp.asarray(x)))
    layer.bias[...] = jnp.asarray(bias)
    np.testing.assert_allclose(layer(jnp.asarray(x)), plain + bias[None], rtol=0, atol=1e-6)


def test_parameters_carry_the_names_of_their_axes():
    layer = make((6,), (2, 3, 4), has_bias=True)
    assert layer.kernel.get_metadata()["out_sharding"] == ("embed", "embed", None, "heads")
    assert layer.bias is not None
    assert layer.bias.get_metadata()["out_sharding"] == ("embed", None, "heads")


def test_the_result_may_be_wider_than_the_weight():
    """Logits: bfloat16 products are summed in float32 and stay there."""
    layer = make((64,), (3,), dtype=jnp.bfloat16, out_dtype=jnp.dtype(jnp.float32))
    x = jnp.asarray(random(5, 64), jnp.bfloat16)
    expected = np.einsum("te,ev->tv", np.float64(x), np.float64(layer.kernel[...]))
    assert layer(x).dtype == jnp.float32
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=1e-5)


def test_another_method_takes_the_product_over():
    class Doubled:
        def multiply(self, x: jax.Array, kernel: jax.Array, num_contracted: int, out_dtype: jnp.dtype) -> jax.Array:
            return 2 * jnp.tensordot(x, kernel, num_contracted).astype(out_dtype)

    x = jnp.asarray(random(5, 2, 3))
    doubled = make((2, 3), (6,), method=Doubled())
    np.testing.assert_allclose(doubled(x), 2 * make((2, 3), (6,))(x), rtol=0, atol=1e-6)


def test_rms_norm_against_its_formula():
    layer, x = RMSNorm(8, 1e-3, dtype=jnp.dtype(jnp.float32)), random(5, 8)
    layer.scale[...] = jnp.asarray(random(8))
    exact = np.float64(x) / np.sqrt(np.mean(np.float64(x) ** 2, axis=-1, keepdims=True) + 1e-3) * random(8)
    np.testing.assert_allclose(layer(jnp.asarray(x)), exact, rtol=0, atol=1e-5)
