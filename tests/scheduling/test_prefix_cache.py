"""What is found in the cache is what was asked for: by tokens, salt and provenance, never by a hash alone."""

import hashlib
from collections.abc import Callable
from typing import Any

from sarathi_jax.scheduling.kv_pages import KVPages
from sarathi_jax.scheduling.prefix_cache import Block, PrefixCache, sha256_digest
from sarathi_jax.scheduling.request import Request

Make = Callable[..., Any]


def weak_digest(parent_digest: bytes, content: bytes) -> bytes:
    """Collides for any two blocks with the same parent's hash and the same first token."""
    return parent_digest[-3:] + content[:1]


def chain_of(cache: PrefixCache, tokens: list[int], salt: str = "") -> list[Block]:
    chain = [cache.root(salt)]
    cache.extend_chain(chain, tokens, len(tokens) // cache.page_size)
    return chain


def insert_all(cache: PrefixCache, chain: list[Block], first_page: int) -> list[bool]:
    return [cache.insert(block, first_page + index) for index, block in enumerate(chain[1:])]


def serve(kv_pages: KVPages, request: Request) -> int:
    """Open, compute and release a request. Returns: the tokens that were found."""
    kv_pages.open([request])
    prefix = kv_pages.find_prefix(request)
    kv_pages.claim(request, prefix)
    kv_pages.reserve(request, request.num_tokens)
    kv_pages.register(request, request.num_tokens)
    kv_pages.release(request)
    kv_pages.pool.check_integrity()
    return len(prefix) * kv_pages.page_size


def test_the_hash_is_chained_sha256_of_provenance_salt_and_tokens() -> None:
    chain = chain_of(PrefixCache(2, "v1"), [5, 258], salt="me")
    root = hashlib.sha256((2).to_bytes(8, "little") + bytes(8) + b"v1me").digest()
    assert chain[0].digest == root
    assert chain[1].digest == hashlib.sha256(root + bytes([5, 0, 0, 0, 2, 1, 0, 0])).digest()


def test_the_longest_known_beginning_is_found() -> None:
    cache = PrefixCache(2)
    insert_all(cache, chain_of(cache, [1, 2, 3, 4, 5, 6]), first_page=10)
    assert cache.find(chain_of(cache, [1, 2, 3, 4, 9, 9]), 9) == [10, 11]
    assert cache.find(chain_of(cache, [1, 2, 3, 4, 5, 6]), 1) == [10]
    assert cache.find(chain_of(cache, [9, 2, 3, 4]), 9) == []


def test_a_gap_ends_what_is_found() -> None:
    cache = PrefixCache(2)
    insert_all(cache, chain_of(cache, [1, 2, 3, 4, 5, 6]), first_page=10)
    cache.forget(11)
    assert cache.find(chain_of(cache, [1, 2, 3, 4, 5, 6]), 9) == [10]


def test_colliding_blocks_are_told_apart_by_their_tokens() -> None:
    cache = PrefixCache(2, digest=weak_digest)
    insert_all(cache, chain_of(cache, [1, 2]), first_page=10)
    other = chain_of(cache, [1, 3])
    assert other[1].digest in {block.digest for block in chain_of(cache, [1, 2])}
    assert cache.find(other, 9) == []
    assert insert_all(cache, other, first_page=20) == [False]


def test_colliding_parents_are_told_apart_by_theirs() -> None:
    # Same hashes all along and the same second block; only the first block's tokens differ.
    cache = PrefixCache(2, digest=weak_digest)
    insert_all(cache, chain_of(cache, [1, 2, 7, 7]), first_page=10)
    other = chain_of(cache, [1, 3, 7, 7])
    cache.forget(10)
    assert insert_all(cache, other, first_page=20) == [True, False]
    assert cache.find(other, 9) == [20]


def test_a_block_is_found_again_after_its_parent_was_evicted_and_came_back() -> None:
    cache = PrefixCache(2)
    insert_all(cache, chain := chain_of(cache, [1, 2, 3, 4]), first_page=10)
    cache.forget(10)
    cache.insert(chain_of(cache, [1, 2])[1], 30)
    assert cache.find(chain_of(cache, [1, 2, 3, 4]), 9) == [30, 11]
    assert cache.tokens_of_page(11) == (1, 2, 3, 4)
    # The next search compares the parents by identity, and need not walk up to the root.
    assert chain[2].parent is not None and chain[2].parent.page_id == 30


def test_salt_and_provenance_part_what_else_is_the_same() -> None:
    tokens = [1, 2, 3, 4]
    digests = {
        chain_of(PrefixCache(2, provenance), tokens, salt)[-1].digest
        for provenance, salt in [("", ""), ("", "s"), ("s", ""), ("ab", "c"), ("a", "bc")]
    }
    assert len(digests) == 5


def test_a_salt_can_not_pose_as_a_group_of_samples() -> None:
    cache = PrefixCache(2)
    assert cache.root("", 1).content not in {cache.root(salt).content for salt in ("", "1", "\x01", "\x01" + "\0" * 7)}


def test_at_least_one_token_is_left_to_compute(make_request: Make) -> None:
    kv_pages = KVPages(20, 4, "", True)
    serve(kv_pages, make_request("a", 12))
    assert serve(kv_pages, make_request("same", 12)) == 8
    assert serve(kv_pages, make_request("longer", 13)) == 12


def test_requests_share_only_within_their_salt(make_request: Make) -> None:
    kv_pages = KVPages(40, 4, "", True)
    assert serve(kv_pages, make_request("a", 12, cache_salt="x")) == 0
    assert serve(kv_pages, make_request("b", 12, cache_salt="y")) == 0
    assert serve(kv_pages, make_request("c", 12, cache_salt="x")) == 8


def test_without_prefix_caching_nothing_is_hashed_or_found(make_request: Make) -> None:
    kv_pages = KVPages(20, 4, "", False)
    assert [serve(kv_pages, make_request(name, 12)) for name in "ab"] == [0, 0]
    assert len(kv_pages.cache) == 0


def test_eviction_makes_a_page_unfindable(make_request: Make) -> None:
    kv_pages = KVPages(4, 4, "", True)
    serve(kv_pages, make_request("a", 12))
    serve(kv_pages, make_request("b", [9] * 9))
    assert serve(kv_pages, make_request("c", 12)) == 4


def test_blocks_are_hashed_once(make_request: Make) -> None:
    hashed: list[bytes] = []

    def counting_digest(parent_digest: bytes, content: bytes) -> bytes:
        hashed.append(content)
        return sha256_digest(parent_digest, content)

    cache, request = PrefixCache(4, digest=counting_digest), make_request("a", 40)
    request.block_chain = [cache.root("")]
    for num_blocks in (3, 3, 10, 9):
        cache.extend_chain(request.block_chain, request.token_ids, num_blocks)
    assert len(hashed) == 11
