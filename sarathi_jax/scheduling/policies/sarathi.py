"""Stall-free batching with chunked prefills: Sarathi-Serve (arXiv 2403.02310), algorithm 3.

Every step holds one token of every running request that decodes; what is left of the token budget goes to partial prefills in the order of arrival,
and only then to new requests. So a prompt of any length never holds up a decode.
"""

from collections.abc import Sequence

from sarathi_jax.scheduling.policy import Plan, View
from sarathi_jax.scheduling.request import Request


class SarathiPolicy:
    """First come, first served. All pages of a prompt are reserved at admission, decodes take theirs on demand.

    When a decode finds no page, the youngest running request loses its own, whatever it is doing, the asking one included. Running requests are
    visited from the oldest on, so a victim is never one that this plan has passed already.
    """

    def plan(self, view: View) -> Plan:
        return _Round(view).plan()


class _Round:
    """One plan in the making."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._limits = view.limits
        self._pages = view.ledger()
        self._num_tokens_left = view.limits.token_budget
        self._num_kept = len(view.running)
        self._num_free_slots = view.num_free_slots
        self._num_partial_prefills = 0
        self._chunks: list[tuple[Request, int]] = []
        self._admitted: list[Request] = []

    def plan(self) -> Plan:
        prefilling = self._add_decodes()
        self._add_partial_prefills(prefilling)
        preempted = self._view.running[self._num_kept :][::-1]
        # Whoever just lost its pages comes first in the queue; letting anyone in now would undo the preemption.
        if not preempted:
            self._add_waiting()
        return Plan(self._chunks, self._admitted, preempted)

    def _add_decodes(self) -> list[Request]:
        """Pass 1: one token for every decode. Returns: running requests that still read their prompt."""
        running, prefilling, under_way = self._view.running, [], self._view.under_way
        chunks, max_decodes = self._chunks, self._max_decodes()
        for index, request in enumerate(running):
            if index >= self._num_kept:
                break
            if under_way and request in under_way:
                continue
            if request.num_computed_tokens < request.num_prefill_tokens:
                prefilling.append(request)
            elif request.num_tokens >= request.max_num_tokens or len(chunks) >= max_decodes:
                continue  # its last token is in flight, or it is another microbatch's
            elif request.num_computed_tokens < request.num_reserved_tokens or self._found_page(running, index):
                chunks.append((request, 1))
        self._num_tokens_left -= len(chunks)
        return prefilling

    def _max_decodes(self) -> int:
        """Decodes of one step: all, or in a pipeline an even share for each microbatch, so that none holds up the others."""
        num_microbatches, budget = self._limits.num_microbatches, self._limits.token_budget
        if num_microbatches == 1:
            return budget
        num_decodes = sum(not each.is_prefilling and each.num_remaining_tokens > 0 for each in self._view.running)
        return min(-(-num_decodes // num_microbatches), budget)

    def _found_page(self, running: Sequence[Request], index: int) -> bool:
        """Take a page for the decode at `index`, preempting from the youngest on. Returns: False if it had to go itself."""
        while self._pages.num_available == 0:
            self._num_kept -= 1
            self._pages.release(running[self._num_kept])
            if self._num_kept == index:
                return False
        self._pages.take(1)
        return True

    def _add_partial_prefills(self, prefilling: Sequence[Request]) -> None:
        """Pass 2: what is left of the budget, first come, first served."""
        for request in prefilling:
            self._add_prefill(request, request.num_tokens - request.num_computed_tokens)

    def _add_waiting(self) -> None:
        """Pass 3: new requests, while budget, rows and pages last. With the budget gone no older prefill can be behind a newer one."""
        for request in self._view.waiting:
            if self._num_tokens_left <= 0 or len(self._admitted) >= self._num_free_slots:
                break
            if not self._admit(request) and self._limits.is_head_of_line_blocking:
                break

    def _admit(self, request: Request) -> bool:
        """Plan a waiting request's first chunk if it may run and fits. Returns: whether it does."""
        # Nothing running: nobody needs room to grow, and a request of the pool's size has to get in some time.
        num_free_pages = self._pages.num_available - (self._limits.num_watermark_pages if self._num_kept else 0)
        # At least one page is new, whatever is cached: a full pool spares looking for a long prompt's pages at every step.
        if request.num_in_flight_rows or num_free_pages < 1:
            return False
        prefix = self._view.find_prefix(request)
        num_remaining_tokens = request.num_tokens - len(prefix) * self._limits.page_size
        if not self._may_add_prefill(num_remaining_tokens):
            return False
        num_new_pages = self._limits.num_pages_for(request.num_tokens) - len(prefix)
        if num_new_pages + self._pages.num_idle(prefix) > num_free_pages:
            return False
        self._pages.claim(prefix)
        self._pages.take(num_new_pages)
        self._num_kept += 1
        self._admitted.append(request)
        self._add_prefill(request, num_remaining_tokens)
        return True

    def _chunk_tokens(self, num_remaining_tokens: int) -> int:
        return min(
            num_remaining_tokens,
            self._num_tokens_left,
            self._limits.long_prefill_token_threshold or num_remaining_tokens,
        )

    def _may_add_prefill(self, num_remaining_tokens: int) -> bool:
        limit = self._limits.max_num_partial_prefills
        is_partial = self._chunk_tokens(num_remaining_tokens) < num_remaining_tokens
        return not is_partial or limit is None or self._num_partial_prefills < limit

    def _add_prefill(self, request: Request, num_remaining_tokens: int) -> None:
        num_tokens = self._chunk_tokens(num_remaining_tokens)
        self._num_partial_prefills += num_tokens < num_remaining_tokens
        if num_tokens > 0:
            self._chunks.append((request, num_tokens))
            self._num_tokens_left -= num_tokens
