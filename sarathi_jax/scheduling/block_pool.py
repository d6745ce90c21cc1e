"""Who holds which KV page: reference counts, free pages, and cached pages that nobody holds. Knows nothing of requests, tokens or hashes.

Every page is in exactly one of three places: *free*, *idle* (cached, held by nobody, least recently used first), or *held* (reference count >= 1).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence


class BlockPool:
    """Pages 0 .. num_pages - 1.

    on_evict: called with an idle page that is taken away to be used anew, so that the cache forgets it.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int], None] = lambda page_id: None) -> None:
        self.num_pages = num_pages
        self._on_evict = on_evict
        self._free = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._ref_counts = [0] * num_pages
        self._is_cached = bytearray(num_pages)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can give: free ones, and idle ones by eviction."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def ref_count(self, page_id: int) -> int:
        return self._ref_counts[page_id]

    def is_cached(self, page_id: int) -> bool:
        return bool(self._is_cached[page_id])

    def allocate(self, num_pages: int) -> list[int]:
        """Take pages, each with one reference; free ones first, then the least recently used idle ones.

        Raises: AssertionError, changing nothing, if fewer are available.
        """
        assert num_pages <= self.num_available, (
            f"{num_pages} pages were asked of a pool with {self.num_available} available: plans have to count them"
        )
        ref_counts = self._ref_counts
        page_ids = self._free[: -num_pages - 1 : -1]
        del self._free[len(self._free) - len(page_ids) :]
        page_ids += [self._evict() for _ in range(num_pages - len(page_ids))]
        for page_id in page_ids:
            ref_counts[page_id] = 1
        return page_ids

    def allocate_one(self) -> int:
        """`allocate` of a single page. Raises: AssertionError if none is available."""
        assert self._free or self._idle, "a page was asked of a pool with none available: plans have to count them"
        page_id = self._free.pop() if self._free else self._evict()
        self._ref_counts[page_id] = 1
        return page_id

    def acquire(self, page_id: int) -> None:
        """Add a reference to a cached page, which stops being idle. Raises: AssertionError if it is not cached."""
        self._check_known(page_id)
        assert self._is_cached[page_id], f"page {page_id} is not cached: only cached pages are shared"
        if self._ref_counts[page_id] == 0:
            del self._idle[page_id]
        self._ref_counts[page_id] += 1

    def release(self, page_ids: Sequence[int]) -> None:
        """Take one reference from each page, in the order of a block table.

        Pages that nobody holds any more become idle if cached, else free. The tail of a table is evicted before its head, because a cached
        page can be found only through the ones before it.
        Raises: AssertionError, changing nothing, if a page is unknown, given twice, or has no reference.
        """
        if not page_ids:
            return
        self._check_known(min(page_ids))
        self._check_known(max(page_ids))
        ref_counts, is_cached = self._ref_counts, self._is_cached
        counts = [ref_counts[page_id] for page_id in page_ids]
        assert 0 not in counts, f"page {page_ids[counts.index(0)]} is released but nobody holds it"
        assert len(set(page_ids)) == len(page_ids), "a page is released twice by one table"
        if 1 not in is_cached:  # so that none is shared either
            for page_id in page_ids:
                ref_counts[page_id] = 0
            self._free += reversed(page_ids)
            return
        for page_id in reversed(page_ids):
            ref_counts[page_id] -= 1
            if ref_counts[page_id] == 0:
                if is_cached[page_id]:
                    self._idle[page_id] = None
                else:
                    self._free.append(page_id)

    def mark_cached(self, page_id: int) -> None:
        """A held page can be found from now on. Raises: AssertionError if nobody holds it."""
        self._check_known(page_id)
        assert self._ref_counts[page_id] > 0, f"page {page_id} can't become cached: nobody holds it"
        self._is_cached[page_id] = 1

    def unmark_cached(self, page_id: int) -> None:
        """A page can't be found any more; an idle one becomes free."""
        self._check_known(page_id)
        self._is_cached[page_id] = 0
        if page_id in self._idle:
            del self._idle[page_id]
            self._free.append(page_id)

    def _evict(self) -> int:
        page_id, _ = self._idle.popitem(last=False)
        self._is_cached[page_id] = 0
        self._on_evict(page_id)
        return page_id

    def _check_known(self, page_id: int) -> None:
        assert 0 <= page_id < self.num_pages, f"page {page_id} is not one of the pool's {self.num_pages}"

    def check_integrity(self) -> None:
        """Raises: AssertionError if a page is in no place or in two, or a count is off."""
        free, idle = set(self._free), set(self._idle)
        held = {page_id for page_id, count in enumerate(self._ref_counts) if count > 0}
        assert len(free) == len(self._free), "a page is free twice"
        assert min(self._ref_counts) >= 0, "a reference count is negative"
        assert not (free & idle or free & held or idle & held), "a page is in two of free, idle and held"
        assert len(free) + len(idle) + len(held) == self.num_pages, "a page is in none of free, idle and held"
        cached = {page_id for page_id in range(self.num_pages) if self._is_cached[page_id]}
        assert idle <= cached, "an idle page is not cached: it should be free"
        assert not free & cached, "a free page is marked as cached"
        shared = {page_id for page_id in held if self._ref_counts[page_id] > 1}
        assert shared <= cached, "a page that is not cached has two holders"
