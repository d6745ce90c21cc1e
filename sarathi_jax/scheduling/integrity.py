"""Checks that requests, queues and pages agree with each other. Slow and complete: for tests, and for a server's idle time."""

from collections import Counter
from collections.abc import Iterable, Sequence

from sarathi_jax.scheduling.kv_pages import KVPages
from sarathi_jax.scheduling.queues import RequestQueues
from sarathi_jax.scheduling.request import Request, RequestState


def check_scheduler(queues: RequestQueues, kv_pages: KVPages, in_flight: Iterable[Sequence[Request]]) -> None:
    """Raises: AssertionError, with a sentence, at the first disagreement."""
    queues.check_integrity()
    kv_pages.pool.check_integrity()
    kv_pages.cache.check_integrity()
    _check_holders(queues.running, kv_pages)
    _check_cache(queues.running, kv_pages)
    num_rows = Counter(id(request) for requests in in_flight for request in requests)
    for request in (*queues.running, *queues.waiting):
        _check_counts(request, num_rows[id(request)])
        _check_pages(request, kv_pages.page_size)


def _check_holders(running: Sequence[Request], kv_pages: KVPages) -> None:
    """A page's reference count is the number of block tables that hold it."""
    holders = Counter(page_id for request in running for page_id in request.block_table.tolist())
    for page_id in range(kv_pages.pool.num_pages):
        count = kv_pages.pool.ref_count(page_id)
        assert count == holders[page_id], (
            f"page {page_id} has {count} references and is in {holders[page_id]} block tables"
        )


def _check_cache(running: Sequence[Request], kv_pages: KVPages) -> None:
    """The cache finds only pages that are marked so, and a holder's tokens are those that the cache says."""
    pool, cache = kv_pages.pool, kv_pages.cache
    cached = {page_id for page_id in range(pool.num_pages) if pool.is_cached(page_id)}
    assert cached == set(cache.pages()), "the pool and the cache disagree on which pages are cached"
    for request in running:
        for index, page_id in enumerate(request.block_table.tolist()):
            if page_id in cached:
                tokens = tuple(request.token_ids[: (index + 1) * cache.page_size])
                assert cache.tokens_of_page(page_id) == tokens, (
                    f"page {page_id} is cached for tokens that it does not hold"
                )


def _check_counts(request: Request, num_rows: int) -> None:
    name = request.request_id
    num_late_rows = 0 if request.state is RequestState.RUNNING else num_rows
    assert request.num_late_rows == num_late_rows, (
        f"{name}: {request.num_late_rows} rows are counted as late, and {num_late_rows} are"
    )
    assert 0 <= request.num_pending_tokens <= num_rows, f"{name}: a pending token has no row in flight"
    assert request.num_tokens <= request.max_num_tokens, f"{name} has more tokens than it may"


def _check_pages(request: Request, page_size: int) -> None:
    name = request.request_id
    page_ids: list[int] = request.block_table.tolist()
    assert len(set(page_ids)) == len(page_ids), f"{name}: a page is twice in one block table"
    assert request.num_reserved_tokens == len(page_ids) * page_size, f"{name}: reserved tokens are not its pages'"
    if request.state is RequestState.RUNNING:
        num_kv_tokens = max(request.num_computed_tokens, request.min_reserved_tokens)
        assert len(page_ids) == -(-num_kv_tokens // page_size), f"{name} holds more or fewer pages than it needs"
        assert request.num_computed_tokens < request.num_tokens, f"{name} runs with nothing left to compute"
        assert request.is_prefilling or request.num_computed_tokens == request.num_tokens - 1, (
            f"{name} decodes and is more than a token behind"
        )
        smooth_until = 0 if request.is_prefilling else min(request.num_reserved_tokens, request.max_num_tokens - 1)
        assert request.smooth_until <= smooth_until, f"{name} is not looked at when it needs a page, or ends"
    else:
        assert not page_ids and request.num_computed_tokens == 0, f"{name} waits and holds pages"
        assert request.batch_slot is None, f"{name} waits and holds a slot"
