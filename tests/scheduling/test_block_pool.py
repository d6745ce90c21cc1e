"""Pages are in exactly one place, whatever is asked of the pool; wrong asks change nothing."""

from collections.abc import Callable

import pytest

from sarathi_jax.scheduling.block_pool import BlockPool


def cached_pool(num_pages: int, evicted: list[int]) -> tuple[BlockPool, list[int]]:
    """A pool whose pages are all cached and idle, released as one table."""
    pool = BlockPool(num_pages, on_evict=evicted.append)
    page_ids = pool.allocate(num_pages)
    for page_id in page_ids:
        pool.mark_cached(page_id)
    pool.release(page_ids)
    return pool, page_ids


def test_pages_are_given_once_and_come_back() -> None:
    pool = BlockPool(5)
    page_ids = pool.allocate(3)
    assert (len(set(page_ids)), pool.num_available) == (3, 2)
    pool.release(page_ids)
    pool.check_integrity()
    assert sorted(pool.allocate(5)) == [0, 1, 2, 3, 4]


def test_the_tail_of_a_table_is_evicted_before_its_head() -> None:
    evicted: list[int] = []
    pool, page_ids = cached_pool(4, evicted)
    pool.allocate(3)
    assert evicted == page_ids[:0:-1]


def test_the_least_recently_used_page_is_evicted_first() -> None:
    evicted: list[int] = []
    pool, page_ids = cached_pool(3, evicted)
    pool.acquire(page_ids[2])
    pool.release([page_ids[2]])
    pool.allocate(2)
    assert evicted == [page_ids[1], page_ids[0]]


def test_free_pages_are_given_before_cached_ones_are_evicted() -> None:
    evicted: list[int] = []
    pool, page_ids = cached_pool(4, evicted)
    pool.unmark_cached(page_ids[0])
    assert pool.allocate(1) == [page_ids[0]]
    assert evicted == []


def test_a_shared_page_stays_held_until_its_last_holder_leaves() -> None:
    pool, page_ids = cached_pool(2, [])
    pool.acquire(page_ids[0])
    pool.acquire(page_ids[0])
    pool.release([page_ids[0]])
    assert (pool.ref_count(page_ids[0]), pool.num_available) == (1, 1)
    pool.check_integrity()


@pytest.mark.parametrize("is_at_once", [True, False])
def test_free_pages_go_first_and_then_those_that_were_idle_for_longest(is_at_once: bool) -> None:
    """Of four idle pages, the last one first, two become free: whoever asks for all four, at once or one by one, gets them in one order."""
    evicted: list[int] = []
    pool, page_ids = cached_pool(4, evicted)
    pool.unmark_cached(page_ids[1])
    pool.unmark_cached(page_ids[3])
    got = pool.allocate(4) if is_at_once else [pool.allocate_one() for _ in range(4)]
    assert got == [page_ids[3], page_ids[1], page_ids[2], page_ids[0]] and evicted == got[2:]
    with pytest.raises(AssertionError, match="a pool with none available"):
        pool.allocate_one()
    pool.check_integrity()


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda pool: pool.allocate(3), "3 pages were asked of a pool with 2 available"),
        (lambda pool: pool.release([0, 3]), "page 3 is released but nobody holds it"),
        (lambda pool: pool.release([0, 0]), "a page is released twice by one table"),
        (lambda pool: pool.release([0, 4]), "page 4 is not one of the pool's 4"),
        (lambda pool: pool.release([0, -1]), "page -1 is not one of the pool's 4"),
        (lambda pool: pool.acquire(0), "page 0 is not cached"),
        (lambda pool: pool.mark_cached(3), "page 3 can't become cached: nobody holds it"),
    ],
)
def test_misuse_is_refused_and_changes_nothing(misuse: Callable[[BlockPool], object], message: str) -> None:
    pool = BlockPool(4)
    assert pool.allocate(2) == [0, 1]
    with pytest.raises(AssertionError, match=message):
        misuse(pool)
    pool.check_integrity()
    assert ([pool.ref_count(page_id) for page_id in range(4)], pool.num_available) == ([1, 1, 0, 0], 2)
