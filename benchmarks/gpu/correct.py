"""Whether the numbers are right: every operation of the kernels against float64 on steps of every kind, and the tokens of a small model against those of the plain kernels.

What is checked is the implementation that the engine would choose by itself, and the GPU's kernels where they can run. Arrays, compiled programs and what is right are made on
several threads, the operations run one after the other, so that the one that ends the process is known: it is the one after the last row.
A row has the error of the number nearest to its bound, the bound and its reason; one that is past it has `failed`.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax

from benchmarks.gpu import correct_attention, correct_pages, correct_thresholds, correct_tokens
from benchmarks.gpu.checks import Check
from benchmarks.gpu.correct_cases import plan_of
from benchmarks.gpu.order import Order, Row, attempt
from sarathi_jax.kernels import registry

MAX_THREADS = 8


def rows(order: Order) -> Iterator[Row]:
    """A row a case and implementation, then one of tokens."""
    checks = all_checks(order, jax.devices()[0])
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS), "prepare") as pool:
        prepared: list[Future[Any]] = [pool.submit(check.prepare) for check in checks]
        for check, future in zip(checks, prepared, strict=True):
            yield attempt(check.row, partial(_run, future))
    yield attempt({"kind": "tokens", "case": "triton against xla"}, partial(correct_tokens.measure, order))


def all_checks(order: Order, device: Any) -> list[Check]:
    """Of all operations that there are."""
    plan = plan_of(is_tiny=order.is_tiny)
    found = [
        *correct_attention.checks(plan.attention, device),
        *correct_pages.rope_checks(plan.rope, device),
        *correct_pages.copy_checks(plan.copies, device),
        *correct_thresholds.checks(plan.thresholds, device),
    ]
    assert {check.row["kind"] for check in found} == registry.OPERATIONS.keys(), "no operation is left out"
    return found


def _run(prepared: "Future[Any]") -> Row:
    return prepared.result()()
