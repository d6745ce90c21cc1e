"""Finds the pages that already hold a prompt's beginning. Knows tokens and hashes; who holds a page is the block pool's affair.

Tokens are cut into full blocks of `page_size`. A block's hash is SHA-256 over its parent's hash and its token ids; the first parent, the *root*, is
over the provenance tag (what wrote the keys and values: model, dtype, every approximation in use) and the salt. A hash only finds a candidate:
its token ids and those of all blocks before it are compared before it counts as a hit, so that a collision costs a miss and never a wrong answer.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence


class Block:
    """A full block of tokens after its parent's; a root has no parent and holds provenance and salt in place of tokens.

    page_id: the page that holds it, while the cache can find it; else None.
    """

    __slots__ = ("content", "digest", "page_id", "parent")

    def __init__(self, parent: "Block | None", content: bytes, digest: bytes) -> None:
        self.parent = parent
        self.content = content
        self.digest = digest
        self.page_id: int | None = None


def sha256_digest(parent_digest: bytes, content: bytes) -> bytes:
    return hashlib.sha256(parent_digest + content).digest()


def is_same_prefix(one: Block | None, other: Block | None) -> bool:
    """Whether two blocks hold the same tokens after the same tokens, root included. Compares contents, never hashes."""
    while one is not other:
        if one is None or other is None or one.content != other.content:
            return False
        one, other = one.parent, other.parent
    return True


class PrefixCache:
    """Map from chained block hashes to pages.

    provenance: tag of what writes the pages; part of every root.
    digest: the chaining hash; another one only in tests of collisions.
    """

    def __init__(
        self, page_size: int, provenance: str = "", digest: Callable[[bytes, bytes], bytes] = sha256_digest
    ) -> None:
        self.page_size = page_size
        self._provenance = provenance.encode()
        self._digest = digest
        self._tokens_format = struct.Struct(f"<{page_size}i")
        self._blocks: dict[bytes, Block] = {}
        self._block_of_page: dict[int, Block] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def root(self, salt: str, group_number: int = 0) -> Block:
        """What a chain starts from. group_number: 0 for what all requests of a salt share; else only that group of samples does."""
        # Lengths in front keep ("ab", "c") and ("a", "bc") apart.
        content = struct.pack("<QQ", len(self._provenance), group_number) + self._provenance + salt.encode()
        return Block(None, content, self._digest(b"", content))

    def extend_chain(self, chain: list[Block], token_ids: Sequence[int], num_blocks: int) -> None:
        """Append blocks until the chain (root first) has `num_blocks` of them. Blocks that are there are not hashed again."""
        for index in range(len(chain) - 1, num_blocks):
            start = index * self.page_size
            content = self._tokens_format.pack(*token_ids[start : start + self.page_size])
            parent = chain[-1]
            chain.append(Block(parent, content, self._digest(parent.digest, content)))

    def find(self, chain: Sequence[Block], max_blocks: int) -> list[int]:
        """The pages that hold the chain's first blocks: as many as are there without a gap, at most `max_blocks`."""
        page_ids: list[int] = []
        matched = chain[0]
        for block in chain[1 : max_blocks + 1]:
            found = self._blocks.get(block.digest)
            if found is None or found.content != block.content or not is_same_prefix(found.parent, matched):
                break
            # Equal to what stood there; the next search compares this one by identity.
            found.parent = matched
            matched = found
            assert found.page_id is not None, "a block in the cache has no page"
            page_ids.append(found.page_id)
        return page_ids

    def insert(self, block: Block, page_id: int) -> bool:
        """Make a page findable. Returns: False if the hash is taken, by the same tokens in another page or by a collision: nothing changes."""
        if block.digest in self._blocks or page_id in self._block_of_page:
            return False
        block.page_id = page_id
        self._blocks[block.digest] = block
        self._block_of_page[page_id] = block
        return True

    def forget(self, page_id: int) -> bool:
        """Make a page unfindable. Returns: whether it was findable."""
        block = self._block_of_page.pop(page_id, None)
        if block is None:
            return False
        del self._blocks[block.digest]
        block.page_id = None
        return True

    def pages(self) -> list[int]:
        """All findable pages."""
        return list(self._block_of_page)

    def tokens_of_page(self, page_id: int) -> tuple[int, ...]:
        """The token ids that a findable page holds, and all before them, from position 0 on."""
        block = self._block_of_page[page_id]
        contents: list[bytes] = []
        while block.parent is not None:
            contents.append(block.content)
            block = block.parent
        return tuple(token for content in reversed(contents) for token in self._tokens_format.unpack(content))

    def check_integrity(self) -> None:
        """Raises: AssertionError if the two maps disagree."""
        assert len(self._blocks) == len(self._block_of_page), "the cache's maps differ in size"
        for digest, block in self._blocks.items():
            assert block.digest == digest, "a block is filed under another block's hash"
            assert block.page_id is not None and self._block_of_page.get(block.page_id) is block, (
                "a block's page does not lead back to it"
            )
