# ruff: noqa: TID251
# pyright: reportMissingImports=false
"""PyTorch's attention on the same GPU, over dense keys and values of the same lengths: its flash kernel, and, where it is asked for, flex_attention for a few cases.

Runs in a process of its own that ends before jax takes the GPU's memory; the cases come without jax. Calls are captured into a CUDA graph, each on keys and values
of its own, so that PyTorch's dispatch on the host and the device's cache count as little as on our side.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.attention_cases import AttentionPlan, Decodes, Prefill, plan_of
from benchmarks.gpu.order import Order, Row, SkippedError, attempt, reason_of

MEMORY_SHARE = 0.6  # of what is free, for keys and values
REPEATS, TARGET_MS, MAX_REPLAYS = 5, 100.0, 1000
Tensors = tuple[Any, list[tuple[Any, Any]]]


def rows(order: Order) -> Iterator[Row]:
    """A row a launch of one kind: `torch_flash_s`, and `torch_flex_s` where it is asked for and works."""
    if not torch.cuda.is_available():
        yield {"kind": "torch", "case": "all", "skipped": "PyTorch sees no GPU"}
        return
    plan = plan_of(is_tiny=order.is_tiny)
    for case in plan.parts:
        row: Row = {"kind": "torch", "case": case.name}
        has_flex = order.has_flex and case in plan.flex
        yield attempt(row, lambda case=case, has_flex=has_flex: _measure(plan, case, has_flex=has_flex))
        torch.cuda.empty_cache()


def _measure(plan: AttentionPlan, case: Decodes | Prefill, *, has_flex: bool) -> Row:
    q, caches = _tensors(plan, case)
    with torch.no_grad():
        found = _flash(plan, case, q, caches)
        if has_flex:
            found |= _flex(case, q, caches)
    return found


def _tensors(plan: AttentionPlan, case: Decodes | Prefill) -> Tensors:
    """q [R, H, M, D], and keys and values [R, K, C, D] for each call of a chain."""
    num_rows, num_queries, length = _sizes(case)
    num_calls = int(min(plan.num_calls(case), torch.cuda.mem_get_info()[0] * MEMORY_SHARE // plan.kv_bytes(case)))
    if not num_calls:
        raise SkippedError("no room for its keys and values")

    def normal(num_heads: int, num_tokens: int) -> Any:
        shape = (num_rows, num_heads, num_tokens, plan.head_dim)
        return torch.randn(shape, dtype=getattr(torch, plan.dtype), device="cuda")

    caches = [(normal(plan.num_kv_heads, length), normal(plan.num_kv_heads, length)) for _ in range(num_calls)]
    return normal(plan.num_heads, num_queries), caches


def _sizes(case: Decodes | Prefill) -> tuple[int, int, int]:
    """Rows, queries of each, keys of each."""
    if isinstance(case, Decodes):
        return case.num_rows, 1, case.context
    return 1, case.chunk, case.chunk + case.history


def _flash(plan: AttentionPlan, case: Decodes | Prefill, q: Any, caches: list[tuple[Any, Any]]) -> Row:
    """The flash kernel with grouped heads; if this version refuses them, with keys and values repeated for every query head beforehand."""
    mask: dict[str, Any] = {}
    if isinstance(case, Prefill):
        # The last query sees all keys. A plain is_causal would put the first query at the first key.
        mask = {"attn_mask": causal_lower_right(case.chunk, case.chunk + case.history)}
        mask = {"is_causal": True} if not case.history else mask
    grouped: dict[str, Any] = {"enable_gqa": True}
    group = plan.num_heads // plan.num_kv_heads

    def repeated() -> list[tuple[Any, Any]]:
        return [(k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)) for k, v in caches]

    forms: tuple[tuple[str, dict[str, Any], Callable[[], list[tuple[Any, Any]]]], ...] = (
        ("grouped heads", mask | grouped, lambda: caches),
        ("repeated heads", mask, repeated),
    )
    errors: list[str] = []
    for form, options, make_caches in forms:
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                seconds = _time(
                    lambda k, v, options=options: scaled_dot_product_attention(q, k, v, **options), make_caches()
                )
            return {"torch_flash_s": seconds, "torch_form": form}
        except Exception as error:
            errors.append(reason_of(error))
            torch.cuda.synchronize()
    return {"failed": "; ".join(errors)}


def _flex(case: Decodes | Prefill, q: Any, caches: list[tuple[Any, Any]]) -> Row:
    """flex_attention, compiled for these shapes, with a block mask where there is one to apply."""
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        compiled, mask = torch.compile(flex_attention, dynamic=False), None
        if isinstance(case, Prefill):
            history = case.history

            def is_seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
                return query + history >= key

            mask = create_block_mask(is_seen, None, None, case.chunk, case.chunk + history, device="cuda")
        seconds = _time(lambda k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True), caches)
        return {"torch_flex_s": seconds}
    except Exception as error:
        return {"torch_flex_failed": reason_of(error)}


def _time(call: Callable[[Any, Any], Any], caches: list[tuple[Any, Any]]) -> float:
    """Median seconds of one call, from replays of a graph that holds one for each cache."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # the first one compiles, chooses and allocates
            call(*caches[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for k, v in caches:
            call(k, v)
    num_replays = max(1, min(round(TARGET_MS / max(_replay_ms(graph, 1), 1e-3)), MAX_REPLAYS))
    return statistics.median(_replay_ms(graph, num_replays) for _ in range(REPEATS)) / 1e3 / len(caches)


def _replay_ms(graph: Any, num_replays: int) -> float:
    """Milliseconds of one replay."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(num_replays):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / num_replays
