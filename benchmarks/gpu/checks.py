"""How far numbers may be from what they should be, how far they are, and what one check of the card's first part consists of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.gpu.order import Row
from sarathi_jax.kernels import registry

Array = np.ndarray[Any, np.dtype[Any]]

FLOAT32_BOUND = 1e-5  # sums of thousands of products of numbers around 1, in float32
UNIT_ROUNDOFFS = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # most that rounding changes, relative
HALF_PRECISION = ("bfloat16", "float16")


class Check(NamedTuple):
    """row: what is checked. prepare: builds arrays, compiles and works out what is right; what it returns runs the operation and judges it."""

    row: Row
    prepare: Callable[[], Callable[[], Row]]


def implementations(operation: str, use: registry.Use) -> dict[str, Callable[..., Any]]:
    """By name: what `registry.choose` takes when it is left to itself, and the GPU's kernel as well, where that can run and is not it."""
    found = {chosen_name(operation, use): registry.choose(operation, use)}
    if registry.OPERATIONS[operation]["triton"].obstacle(use) is None:
        found["triton"] = registry.choose(operation, use, implementation="triton")
    return found


def chosen_name(operation: str, use: registry.Use) -> str:
    """The first that can serve this use."""
    return next(name for name, each in registry.OPERATIONS[operation].items() if each.obstacle(use) is None)


def attention_obstacle(device: Any) -> str | None:
    """Why attention on a GPU is not the GPU's own kernel; None if it is, and where there is no GPU."""
    if device.platform == "cpu":
        return None
    use, operation = registry.use_on(device, "bfloat16", 128), "ragged_paged_attention"
    chosen = chosen_name(operation, use)
    if chosen == "triton":
        return None
    return f"attention is {chosen}, not triton: {registry.OPERATIONS[operation]['triton'].obstacle(use)}"


def compiled(function: Callable[..., Any], arguments: tuple[Any, ...], **jit_options: Any) -> Callable[[], Any]:
    """A function that runs the operation once, compiled here and now; donated arguments are gone afterwards."""
    arrays = jax.tree.map(jax.numpy.asarray, arguments)
    program = jax.jit(function, **jit_options).lower(*arrays).compile()
    return lambda: jax.tree.map(np.asarray, program(*arrays))


def judge(got: Array, exact: Array, bound: Array | float, why: str) -> Row:
    """The number that is nearest to its bound, or past it.

    Args:
      got: of any dtype. exact, bound: float64, of its shape; a bound is above 0.
      why: the reason of the bound.
    """
    got = got.astype(np.float64)
    if not np.isfinite(got).all():
        return {"why": why, "failed": f"{np.sum(~np.isfinite(got))} of {got.size} numbers are NaN or infinite"}
    errors, bounds = np.abs(got - exact).reshape(-1), np.broadcast_to(bound, got.shape).reshape(-1)
    if not errors.size:
        return {"why": why, "failed": "there is no number to judge"}
    nearest = int(np.argmax(errors / bounds))
    found: Row = {
        "error": float(errors[nearest]),
        "bound": float(bounds[nearest]),
        "share_of_bound": float(errors[nearest] / bounds[nearest]),
        "why": why,
    }
    if found["share_of_bound"] > 1:
        found["failed"] = f"{np.sum(errors > bounds)} of {errors.size} numbers are further off than they may be"
    return found


def judge_same(got: Array, expected: Array, why: str) -> Row:
    """Bit for bit, whatever the bits mean. Returns: as `judge`, with the count of places that differ as error."""
    num_wrong = int(np.sum(_bits(got) != _bits(expected)))
    found: Row = {"error": float(num_wrong), "bound": 0.0, "share_of_bound": 0.0, "why": why}
    if num_wrong:
        found |= {"share_of_bound": None, "failed": f"{num_wrong} of {_bits(got).size} bytes have changed"}
    return found


def worst(*judged: Row) -> Row:
    """The one that failed, or came nearest to it."""
    return max(judged, key=lambda row: ("failed" in row, row.get("share_of_bound") or 0.0))


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
