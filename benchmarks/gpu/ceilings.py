"""What the device reaches on its own ground: bytes a second copied, and bf16 operations a second in large products of random numbers.

Copies: an array of several GB into another one, by the device's own copy and by a kernel that negates; bytes read and bytes written both count.
Reading alone, a sum, stands beside them. Products: the square one, and the shapes of a 7B model's weights at 2,048 tokens; random numbers, since a device
under a power limit multiplies zeros faster.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.arithmetic import matmul_flops
from benchmarks.gpu.order import Order, Row, attempt
from benchmarks.gpu.timing import time_chain

COPY_BYTES, TINY_COPY_BYTES = 4 << 30, 1 << 20
MATMULS = ((8192, 8192, 8192), (2048, 4096, 28672), (2048, 14336, 4096), (2048, 4096, 6144), (512, 4096, 28672))
TINY_MATMULS = ((64, 64, 64),)
NUM_PRODUCTS = 4  # with weights of their own: no weight is still in the cache when its turn comes


def rows(order: Order) -> Iterator[Row]:
    """A row a kind of copy, and one a product."""
    for name in ("copy", "negate", "read"):
        yield attempt({"kind": "bandwidth", "case": name}, lambda name=name: _bandwidth(name, order.is_tiny))
    for shape in TINY_MATMULS if order.is_tiny else MATMULS:
        case: Row = {"kind": "matmul", "case": "x".join(map(str, shape))}
        yield attempt(case, lambda shape=shape: _matmul(shape, order.is_tiny))


def _bandwidth(name: str, is_tiny: bool) -> Row:
    num_bytes = TINY_COPY_BYTES if is_tiny else COPY_BYTES
    source = jax.random.normal(jax.random.key(0), (num_bytes // 4,), jnp.float32)
    if name == "read":
        timing, _ = time_chain(_read(source), jnp.zeros((), jnp.float32), is_tiny=is_tiny)
        num_moved = num_bytes
    else:
        copy = jax.jit(jnp.copy if name == "copy" else jnp.negative)
        timing, _ = time_chain(_into(copy), (source, jnp.zeros_like(source)), is_tiny=is_tiny)
        num_moved = 2 * num_bytes
    return {"num_bytes": num_moved, **timing._asdict(), "bytes_per_s": num_moved / timing.seconds}


def _read(source: jax.Array) -> Any:
    add = jax.jit(lambda total, array: total + jnp.sum(array))
    return lambda total: add(total, source)


def _into(copy: Any) -> Any:
    """(from, to) -> (what is now in `to`, from): two arrays take turns, and no memory is asked for."""
    onto = jax.jit(lambda source, target: copy(source), donate_argnums=1, keep_unused=True)
    return lambda pair: (onto(pair[0], pair[1]), pair[0])


def _matmul(shape: tuple[int, int, int], is_tiny: bool) -> Row:
    m, k, n = shape
    dtype = jnp.float32 if is_tiny else jnp.bfloat16
    keys = jax.random.split(jax.random.key(1), 2 * NUM_PRODUCTS)
    lefts = tuple(jax.random.normal(key, (m, k), dtype) for key in keys[:NUM_PRODUCTS])
    rights = tuple(jax.random.normal(key, (k, n), dtype) for key in keys[NUM_PRODUCTS:])

    def products(targets: Any, lefts: Any, rights: Any) -> Any:
        del targets  # memory for the results
        return tuple(left @ right for left, right in zip(lefts, rights, strict=True))

    onto = jax.jit(products, donate_argnums=0, keep_unused=True)

    def multiply(targets: Any) -> Any:
        return onto(targets, lefts, rights)

    timing, _ = time_chain(multiply, tuple(jnp.zeros((m, n), dtype) for _ in rights), is_tiny=is_tiny)
    num_flops = matmul_flops(m, k, n)
    seconds = timing.seconds / NUM_PRODUCTS
    return {"num_flops": num_flops, "seconds": seconds, "flops_per_s": num_flops / seconds}
