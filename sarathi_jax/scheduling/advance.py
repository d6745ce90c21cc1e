"""Carries a plan out on its requests and their pages, and says what the device is to run: rows. Knows nothing of queues, policies or steps in flight."""

from collections.abc import Sequence

import numpy as np

from sarathi_jax.scheduling.decode_group import DecodeGroup
from sarathi_jax.scheduling.kv_pages import KVPages
from sarathi_jax.scheduling.policy import Plan
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import ScheduledRow
from sarathi_jax.scheduling.step_rows import StepRows


def advance(
    plan: Plan, last: DecodeGroup, kv_pages: KVPages, *, may_be_pending: bool, may_be_constrained: bool
) -> StepRows:
    """Advance each request of a plan by its chunk. Returns: its rows; those of one token come first.

    last: the decodes of the step before. may_be_pending: whether a decode's token may be in flight. may_be_constrained: whether there may be constraints.
    """
    decodes = plan.decodes
    group = last if last.requests == decodes else DecodeGroup(decodes)
    is_pending: Sequence[bool] | None = None
    if may_be_pending and group is last:
        is_pending = [True] * len(decodes)  # the step before is in flight, and samples for each of them
    elif may_be_pending:
        is_pending = [each.num_tokens > len(each.token_ids) for each in decodes]
    masks: dict[int, np.ndarray] = {}
    if may_be_constrained:
        masks = {place: each.token_mask() for place, each in enumerate(decodes) if each.constraint}
    crossings = group.advance(kv_pages)
    if not plan.prefills:
        return StepRows(group, crossings, is_pending, masks)
    admitted, prefills = plan.admitted, plan.prefills
    if len(prefills) > 1:
        prefills = sorted(prefills, key=lambda chunk: chunk[1] > 1)
    others = [_advance_prefill(each, count, kv_pages, is_first=each in admitted) for each, count in prefills]
    return StepRows(group, crossings, is_pending, masks, others, [request for request, _ in prefills])


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
