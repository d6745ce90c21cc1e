"""The fixed shapes that steps are padded to, so that nothing compiles while requests are served.

A bucket is (tokens T, rows S, variant). Decode-only buckets have T = S: 1, 4, 16, then doubling up to max_num_seqs. Mixed ones hold 32 tokens (a short prompt on
an idle engine), then 128 x 1, 2, 3, 4, 6, 8, 12, ..., and exactly the token budget, which every step has while prompts wait. Every size costs a compile at the
first start, so they are spaced for a padding of a third at most where work grows with size. Variants differ in what happens to the logits:

    greedy   argmax alone
    sample   temperature, top-k, top-p, min-p and a draw
    full     all that, after penalties, biases, masks and minimum length; with log-probabilities of outputs and prompts

Any variant serves the rows of the ones before it. `full` is compiled for every second shape only: fewer programs, for requests that are rare.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from sarathi_jax.config import TOKEN_TILE

SMALL_MIXED = 32
SPARSE_BELOW = 16


class Variant(IntEnum):
    """What a step does with the logits; a larger one does all that a smaller one does."""

    GREEDY = 0
    SAMPLE = 1
    FULL = 2


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A step's shape: num_tokens T, num_rows S. In a decode-only bucket every row is one token."""

    num_tokens: int
    num_rows: int
    is_decode_only: bool
    variant: Variant

    @property
    def name(self) -> str:
        return f"{'decode' if self.is_decode_only else 'mixed'} {self.num_tokens}x{self.num_rows} {self.variant.name.lower()}"


class BucketTable:
    """All buckets of an engine, and the choice among them.

    Args:
      variants: those that will be asked for.
      is_sparse: only the largest sizes: two programs a variant, for one batch rather than for serving.
    """

    def __init__(
        self,
        token_budget: int,
        max_num_seqs: int,
        *,
        variants: tuple[Variant, ...] = tuple(Variant),
        is_sparse: bool = False,
    ) -> None:
        decode_sizes, mixed_sizes = _decode_sizes(max_num_seqs), _mixed_sizes(token_budget)
        if is_sparse:
            decode_sizes, mixed_sizes = decode_sizes[-1:], mixed_sizes[-1:]
        self.buckets: tuple[Bucket, ...] = tuple(
            Bucket(size, min(size, max_num_seqs), is_decode_only, variant)
            for is_decode_only, sizes in ((True, decode_sizes), (False, mixed_sizes))
            for variant in variants
            for size in (_every_second(sizes) if variant is Variant.FULL else sizes)
        )

    @property
    def least_variant(self) -> Variant:
        """The cheapest one that there is."""
        return min(bucket.variant for bucket in self.buckets)

    def choose(self, num_tokens: int, num_rows: int, *, is_decode_only: bool, variant: Variant) -> Bucket:
        """The smallest bucket that holds a step. A decode-only step may not take a mixed one, nor the other way round."""
        for bucket in self.buckets:
            if (
                bucket.is_decode_only == is_decode_only
                and bucket.variant == variant
                and bucket.num_tokens >= num_tokens
                and bucket.num_rows >= num_rows
            ):
                return bucket
        raise AssertionError(f"a schedule of {num_tokens} tokens in {num_rows} rows is larger than the largest bucket")


def largest_first(buckets: Iterable[Bucket]) -> list[Bucket]:
    """By tokens, and among equals those that do most with logits."""
    return sorted(buckets, key=lambda bucket: (bucket.num_tokens, bucket.variant), reverse=True)


def _decode_sizes(max_num_seqs: int) -> list[int]:
    sizes = [1]
    while sizes[-1] < max_num_seqs:
        sizes.append(min(sizes[-1] * (4 if sizes[-1] < SPARSE_BELOW else 2), max_num_seqs))
    return sizes


def _mixed_sizes(token_budget: int) -> list[int]:
    sizes, tile = {min(SMALL_MIXED, token_budget), token_budget}, TOKEN_TILE
    while tile < token_budget:
        sizes |= {size for size in (tile, tile + tile // 2) if size % TOKEN_TILE == 0 and size < token_budget}
        tile *= 2
    return sorted(sizes)


def _every_second(sizes: list[int]) -> list[int]:
    return sizes[::-2][::-1]  # the largest one stays
