"""The KV pages of requests: the block pool and the prefix cache, kept in step. Knows nothing of queues, budgets or policies."""

from collections.abc import Sequence

from sarathi_jax.scheduling.block_pool import BlockPool
from sarathi_jax.scheduling.prefix_cache import PrefixCache
from sarathi_jax.scheduling.request import Request


class KVPages:
    """Gives requests their pages, finds pages that already hold what they need, and takes them back.

    is_prefix_caching: whether all requests share what they computed; samples of one prompt always do.
    """

    def __init__(self, num_pages: int, page_size: int, provenance: str, is_prefix_caching: bool) -> None:
        self.page_size = page_size
        self.cache = PrefixCache(page_size, provenance)
        self.pool = BlockPool(num_pages, on_evict=self._forget_evicted)
        self.is_prefix_caching = is_prefix_caching
        self._num_groups = 0

    def open(self, requests: Sequence[Request]) -> None:
        """Say what these samples of one prompt may share: everything of their salt, or each other's pages only, or nothing."""
        if not self.is_prefix_caching and len(requests) == 1:
            return
        self._num_groups += 1
        root = self.cache.root(requests[0].cache_salt, 0 if self.is_prefix_caching else self._num_groups)
        for request in requests:
            request.block_chain = [root]

    def fork(self, leader: Request, sample: Request) -> None:
        """Another sample of a prompt starts: it need not hash the prompt again."""
        sample.block_chain = leader.block_chain[: 1 + leader.num_prompt_tokens // self.page_size]

    def close(self, requests: Sequence[Request]) -> None:
        """All samples of a prompt have ended: pages that only they could find are forgotten."""
        if not self.is_prefix_caching:
            # In an order that is the same in every run: it decides which page is given out next.
            for block in dict.fromkeys(block for request in requests for block in request.block_chain):
                if block.page_id is not None:
                    self._forget(block.page_id)

    def find_prefix(self, request: Request) -> list[int]:
        """Pages that hold the request's first tokens already; at least one token is left to compute. Changes nothing that can be seen."""
        if not request.block_chain or request.needs_prompt_logprobs:
            return []
        max_blocks = (len(request.token_ids) - 1) // self.page_size
        self.cache.extend_chain(request.block_chain, request.token_ids, max_blocks)
        return self.cache.find(request.block_chain, max_blocks)

    def claim(self, request: Request, page_ids: Sequence[int]) -> None:
        """Start a request's block table with pages that were found."""
        for page_id in page_ids:
            self.pool.acquire(page_id)
        request.hold_pages(page_ids, self.page_size)
        self._set_registered(request, len(page_ids))

    def reserve(self, request: Request, num_tokens: int) -> None:
        """Extend the block table to hold this many tokens. Raises: AssertionError if the pages are not there."""
        num_new_pages = -(-num_tokens // self.page_size) - len(request.block_table)
        if num_new_pages > 0:
            request.hold_pages(self.pool.allocate(num_new_pages), self.page_size)

    def extend(self, request: Request) -> None:
        """A page for the next token of a decode whose pages are full. Raises: AssertionError if none is there."""
        request.go_on_in(self.pool.allocate_one(), self.page_size)

    def release(self, request: Request) -> None:
        """Take a request's pages back; those that the cache can find stay so until they are needed."""
        self.pool.release(request.drop_pages())

    def register(self, request: Request, num_tokens: int) -> None:
        """Make the full pages among the first `num_tokens` findable. Only for tokens whose step has completed."""
        if not request.block_chain:
            return
        num_blocks = num_tokens // self.page_size
        self.cache.extend_chain(request.block_chain, request.token_ids, num_blocks)
        for index in range(request.num_registered_blocks, num_blocks):
            page_id = int(request.block_table[index])
            if self.cache.insert(request.block_chain[index + 1], page_id):
                self.pool.mark_cached(page_id)
        self._set_registered(request, num_blocks)

    def distrust(self, request: Request) -> None:
        """A request computed nonsense: the pages that it alone holds can't be found any more."""
        for page_id in request.block_table.tolist():
            if self.pool.ref_count(page_id) == 1:
                self._forget(page_id)

    def forget_all(self) -> None:
        """The device lost its pages: nothing can be found any more. Only when no request holds any."""
        for page_id in self.cache.pages():
            self._forget(page_id)

    def _set_registered(self, request: Request, num_blocks: int) -> None:
        request.num_registered_blocks = num_blocks
        if request.block_chain:
            request.next_block_end = (num_blocks + 1) * self.page_size

    def _forget(self, page_id: int) -> None:
        if self.cache.forget(page_id):
            self.pool.unmark_cached(page_id)

    def _forget_evicted(self, page_id: int) -> None:
        self.cache.forget(page_id)
