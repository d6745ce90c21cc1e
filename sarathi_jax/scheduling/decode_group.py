"""Decodes that are in one step after another together: what stays the same for all of these steps is looked up once. Knows nothing of plans or results."""

from collections.abc import Sequence, Set

import numpy as np

from sarathi_jax.scheduling.kv_pages import KVPages
from sarathi_jax.scheduling.request import Request, RequestState


class DecodeGroup:
    """A group lives while consecutive steps have the same decodes in the same order. A request that leaves one, loses its slot or its pages, decodes again only
    after a step that it read in; so what is kept here of its members holds.

    requests: in the plans' order. starts: where each one's token is in the group's first step; it is one further in each that follows.
    slots, block_tables: of the newest step; lists that are replaced, never changed. num_steps: that the group was in.
    """

    __slots__ = (
        "_appends",
        "_arrays",
        "_stop_token_ids",
        "block_tables",
        "num_steps",
        "requests",
        "slots",
        "starts",
        "sum_of_starts",
    )

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.starts = [request.num_computed_tokens for request in requests]
        self.sum_of_starts = sum(self.starts)
        self.slots = [request.batch_slot for request in requests]
        self.block_tables = [request.block_table for request in requests]
        self._appends = [request.token_ids.append for request in requests]
        stops = [request.stop_token_ids for request in requests if request.stop_token_ids]
        self._stop_token_ids: frozenset[int] = frozenset().union(*stops)
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None
        self.num_steps = 0
        assert None not in self.slots, "a token is planned of a request that does not run"

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """starts and slots, i32[requests] each; made once, and never written to."""
        if self._arrays is None:
            self._arrays = np.array(self.starts, np.int32), np.array(self.slots, np.int32)
        return self._arrays

    def advance(self, kv_pages: KVPages) -> list[int]:
        """Each goes on by the one token that it is behind. Returns: places of those that reach the end of a page that can be found, or their own.

        The one loop over all decodes of a step: kept free of calls for those that just go on.
        """
        crossings, grown = list[int](), list[int]()
        for place, request in enumerate(self.requests):
            end = request.num_tokens
            request.num_computed_tokens = end
            request.num_tokens = end + 1
            if end >= request.smooth_until:
                if end > request.smooth_until:
                    if end > request.num_reserved_tokens:
                        kv_pages.extend(request)
                        grown.append(place)
                    else:
                        request.look_ahead(kv_pages.page_size)
                if end == request.smooth_until and (request.block_chain or end == request.max_num_tokens - 1):
                    crossings.append(place)
        if grown:
            self.block_tables = self.block_tables.copy()
            for place in grown:
                self.block_tables[place] = self.requests[place].block_table
        self.num_steps += 1
        return crossings

    def take(self, token_ids: Sequence[int], dropped: Set[int]) -> set[int]:
        """Each takes its token in; those of `dropped` places are nobody's. token_ids: of a step's rows. Returns: places of those that may end with a stop token."""
        if dropped:
            for place, append in enumerate(self._appends):
                if place not in dropped:
                    append(token_ids[place])
        else:
            for append, token_id in zip(self._appends, token_ids, strict=False):
                append(token_id)
        if not self._stop_token_ids or self._stop_token_ids.isdisjoint(token_ids):
            return set()
        pairs = zip(self.requests, token_ids, strict=False)
        return {place for place, (request, token_id) in enumerate(pairs) if token_id in request.stop_token_ids}

    def check_integrity(self) -> None:
        """Raises: AssertionError if a member that still decodes is not where the group takes it to be. To be asked between steps."""
        columns = zip(self.requests, self.starts, self.slots, self.block_tables, strict=True)
        for request, start, slot, block_table in columns:
            if request.state is RequestState.RUNNING and not request.is_prefilling:
                name = request.request_id
                assert request.num_computed_tokens == start + self.num_steps, f"{name} is not as far as its group"
                assert request.batch_slot == slot, f"{name} has another slot than its group takes it to have"
                assert request.block_table is block_table, f"{name} has other pages than its group takes it to have"
