"""Weight products. Every one of the model's goes through a `LinearMethod`: where other number formats, and products that talk, come in."""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

INIT_STDDEV = 0.02


def make_param(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], dtype: jnp.dtype, *, stddev: float = INIT_STDDEV
) -> nnx.Param:
    """A parameter with random normal values and one logical axis name a dimension (None: never sharded)."""
    value = (jax.random.normal(rngs.params(), tuple(shape)) * stddev).astype(dtype)
    return with_axes(value, axes)


def with_axes(value: jax.Array, axes: Sequence[str | None]) -> nnx.Param:
    """A parameter that carries its logical axes; which mesh axes they mean is `sarathi_jax.sharding.rules`' affair."""
    return nnx.Param(value, out_sharding=tuple(axes), eager_sharding=False)


class LinearMethod(Protocol):
    """How a product of activations and a weight is computed."""

    def multiply(self, x: jax.Array, kernel: jax.Array, num_contracted: int, out_dtype: jnp.dtype) -> jax.Array:
        """Contract the last `num_contracted` axes of x with the first ones of kernel."""
        ...


class DenseMethod:
    """The product as it stands, in the kernel's dtype."""

    def multiply(self, x: jax.Array, kernel: jax.Array, num_contracted: int, out_dtype: jnp.dtype) -> jax.Array:
        x_axes = tuple(range(x.ndim - num_contracted, x.ndim))
        dimensions = ((x_axes, tuple(range(num_contracted))), ((), ()))
        return jax.lax.dot_general(x, kernel, dimensions, preferred_element_type=out_dtype)


DENSE = DenseMethod()


class Linear(nnx.Module):
    """y = x kernel + bias, over any number of leading axes.

    Args:
      in_shape, out_shape: the axes that are contracted, and those that come in their place.
      in_axes, out_axes: their logical names.
      out_dtype: of the result; None is the kernel's.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        in_axes: tuple[str | None, ...],
        out_axes: tuple[str | None, ...],
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        has_bias: bool = False,
        out_dtype: jnp.dtype | None = None,
        method: LinearMethod = DENSE,
    ) -> None:
        self.kernel = make_param(rngs, (*in_shape, *out_shape), (*in_axes, *out_axes), dtype)
        self.bias = with_axes(jnp.zeros(out_shape, dtype), out_axes) if has_bias else None
        self.num_contracted = len(in_shape)
        self.out_dtype = jnp.dtype(out_dtype or dtype)
        self.method = method

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., *in_shape]. Returns: [..., *out_shape]."""
        y = self.method.multiply(x, self.kernel[...], self.num_contracted, self.out_dtype)
        return (
            y
            if self.bias is None
            else y + self.bias[...].astype(y.dtype).reshape((1,) * (x.ndim - self.num_contracted) + self.bias.shape)
        )
