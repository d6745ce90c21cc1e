"""Carries a plan out on its requests and their pages, and says what the device is to run: rows. Knows nothing of queues, policies or steps in flight."""

from collections.abc import Sequence
from typing import NamedTuple

from sarathi_jax.scheduling.kv_pages import KVPages
from sarathi_jax.scheduling.policy import Plan
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import ScheduledRow
from sarathi_jax.scheduling.step_rows import StepRows


class Advance(NamedTuple):
    """What a plan comes to. requests: of the rows. crossings: places of decodes that reach the end of a page, or their own."""

    rows: StepRows
    requests: Sequence[Request]
    crossings: Sequence[int]


def advance(plan: Plan, kv_pages: KVPages, *, may_be_pending: bool, may_be_constrained: bool) -> Advance:
    """Advance each request of a plan by its chunk; rows of one token come first.

    may_be_pending: whether a decode's token may be in flight. may_be_constrained: whether there may be constraints.
    """
    decodes, admitted = plan.decodes, plan.admitted
    is_pending = [each.num_tokens > len(each.token_ids) for each in decodes] if may_be_pending else None
    constrained = [place for place, each in enumerate(decodes) if each.constraint] if may_be_constrained else ()
    masks = {place: decodes[place].token_mask() for place in constrained}
    starts = [request.num_computed_tokens for request in decodes]
    crossings = _advance_decodes(decodes, kv_pages)
    slots = [request.batch_slot for request in decodes]
    block_tables = [request.block_table for request in decodes]
    prefills = sorted(plan.prefills, key=lambda chunk: chunk[1] > 1)
    others = [_advance_prefill(each, count, kv_pages, is_first=each in admitted) for each, count in prefills]
    requests = [*decodes, *[request for request, _ in prefills]] if prefills else decodes
    return Advance(StepRows(decodes, starts, slots, block_tables, is_pending, masks, others), requests, crossings)


def _advance_decodes(requests: Sequence[Request], kv_pages: KVPages) -> list[int]:
    """Each by the one token that it is behind. Returns: crossings. The one loop over all decodes of a step: kept free of calls for those that just go on."""
    crossings: list[int] = []
    for place, request in enumerate(requests):
        end = request.num_tokens
        request.num_computed_tokens = end
        request.num_tokens = end + 1
        if end >= request.smooth_until:
            if end > request.num_reserved_tokens:
                kv_pages.reserve(request, end)
            request.look_ahead(kv_pages.page_size)
            if end >= request.smooth_until:
                crossings.append(place)
    return crossings


def _advance_prefill(request: Request, num_tokens: int, kv_pages: KVPages, *, is_first: bool) -> ScheduledRow:
    """A chunk of what a request had at its admission. is_first: since then. Returns: its row."""
    start, slot = request.num_computed_tokens, request.batch_slot
    end, num_tokens_before = start + num_tokens, request.num_tokens
    assert slot is not None and start < end <= num_tokens_before, f"{num_tokens} tokens are planned of {request!r}"
    if end > request.num_reserved_tokens:
        kv_pages.reserve(request, end)
    does_sample = end == num_tokens_before
    row = ScheduledRow(
        request.request_id,
        start,
        num_tokens,
        None if request.num_pending_tokens else request.token_ids[start:end],
        request.block_table,
        slot,
        does_sample,
        is_first,
        request.token_ids[:start] if is_first else (),
        request.num_prompt_tokens,
        num_tokens_before - request.num_prompt_tokens,
        request.sampling,
        request.seed,
        None if does_sample else request.token_ids[end],
        request.token_mask() if does_sample and request.constraint is not None else None,
    )
    request.num_computed_tokens = end
    if does_sample:
        request.num_tokens = end + 1
        request.look_ahead(kv_pages.page_size)
    return row
