"""What the card's first part checks, as pure numbers: steps of every kind for attention, and shapes for the other operations.

Letters as in docs/shapes.md; G = H / K. Between them the steps have all number formats, head sizes and groups, rows that are cut into spans and rows that are not,
one row or two or 128, chunks after a long history, windows, soft caps, pages that rows share, and buckets that are mostly padding.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A row: q_len tokens after `history` others, of which the first num_shared pages are the first row's."""

    q_len: int
    history: int
    num_shared: int = 0

    @property
    def kv_len(self) -> int:
        return self.q_len + self.history


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """One launch. dtype: of queries. is_int8: of KV, which is else of dtype. num_tokens T, num_rows S, max_len N B: with padding; a long max_len lets rows be cut."""

    name: str
    spans: tuple[Span, ...]
    dtype: str = "bfloat16"
    is_int8: bool = False
    num_kv_heads: int = 2
    group: int = 4
    head_dim: int = 128
    page_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    num_tokens: int = 128
    num_rows: int = 128
    max_len: int = 16384

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def is_decode_only(self) -> bool:
        return all(span.q_len == 1 for span in self.spans)

    @property
    def kv_dtype(self) -> str:
        return "int8" if self.is_int8 else self.dtype

    @property
    def shape(self) -> str:
        """For people."""
        kv = " int8" if self.is_int8 else ""
        sizes = f"T{self.num_tokens} S{self.num_rows} K{self.num_kv_heads} G{self.group} D{self.head_dim}"
        return f"{self.dtype}{kv} {sizes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeCase:
    """num_tokens T, of which the first num_real are real."""

    dtype: str
    num_kv_heads: int
    group: int
    head_dim: int
    num_tokens: int
    num_real: int
    is_int8: bool = False

    @property
    def kv_dtype(self) -> str:
        return "int8" if self.is_int8 else self.dtype

    @property
    def shape(self) -> str:
        kv = " int8" if self.is_int8 else ""
        return f"{self.dtype}{kv} T{self.num_tokens} K{self.num_kv_heads} G{self.group} D{self.head_dim}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdsCase:
    """R rows of V logits."""

    num_rows: int
    vocab_size: int

    @property
    def shape(self) -> str:
        return f"float32 R{self.num_rows} V{self.vocab_size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCase:
    """num_pairs pages copied in a cache of num_pages. dtype: of the cache; int8 has scales."""

    dtype: str
    num_pairs: int
    num_pages: int
    num_kv_heads: int
    head_dim: int
    page_size: int

    @property
    def shape(self) -> str:
        return f"{self.dtype} K{self.num_kv_heads} D{self.head_dim} B{self.page_size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectPlan:
    """All that is checked."""

    attention: tuple[AttentionCase, ...]
    rope: tuple[RopeCase, ...]
    thresholds: tuple[ThresholdsCase, ...]
    copies: tuple[CopyCase, ...]


def _short_rows(count: int, *, num_shared: int = 0) -> tuple[Span, ...]:
    """Decodes of all lengths up to 600, every third with the first row's pages."""
    return tuple(Span(1, row * 157 % 600, num_shared * (row % 3 == 0)) for row in range(count))


FULL = CorrectPlan(
    attention=(
        AttentionCase(name="decode, uncut", spans=(Span(1, 99),), num_tokens=1, num_rows=1, max_len=256),
        AttentionCase(name="decode, cut", spans=(Span(1, 16383),), num_tokens=1, num_rows=1),
        AttentionCase(
            name="decodes, one long", spans=(Span(1, 0), Span(1, 4999)), dtype="float16", num_kv_heads=4, group=1,
            head_dim=64, num_tokens=2, num_rows=2, max_len=8192,
        ),
        AttentionCase(
            name="decodes, one long, shared",
            spans=(Span(1, 200), *_short_rows(60, num_shared=9), Span(1, 16000), *_short_rows(60)),
        ),
        AttentionCase(
            name="decodes, all short", spans=_short_rows(128), dtype="float32", num_kv_heads=1, group=3, head_dim=64,
            max_len=1024,
        ),
        AttentionCase(
            name="decodes, wide group", spans=(Span(1, 2000), Span(1, 5), Span(1, 63)), num_kv_heads=1, group=71,
            head_dim=64, num_tokens=4, num_rows=4,
        ),
        AttentionCase(
            name="decodes", spans=(Span(1, 9000), Span(1, 3), Span(1, 255), Span(1, 256)), is_int8=True, num_tokens=4,
            num_rows=4,
        ),
        AttentionCase(
            name="mixed, few tokens", spans=(Span(1, 40), Span(1, 7), Span(5, 0)), dtype="float32", num_kv_heads=1,
            group=3, head_dim=64, num_tokens=32, num_rows=32, max_len=256,
        ),
        AttentionCase(
            name="mixed, long history", spans=(Span(1, 300), Span(1, 8000), Span(64, 8128)),
        ),
        AttentionCase(
            name="mixed, window", spans=(Span(1, 5000), Span(1, 100), Span(100, 3000)), window=1024, num_rows=16,
        ),
        AttentionCase(
            name="mixed, soft cap", spans=(Span(1, 700), Span(40, 500), Span(20, 0)), dtype="float32", group=1,
            head_dim=256, soft_cap=5.0, num_rows=8, max_len=2048,
        ),
        AttentionCase(
            name="mixed, large heads", spans=(Span(1, 6000), Span(48, 2000)), dtype="float16", num_kv_heads=1,
            head_dim=256, num_rows=2, max_len=8192,
        ),
        AttentionCase(
            name="mixed, wide group", spans=(Span(1, 500), Span(30, 600), Span(2, 0)), num_kv_heads=1, group=71,
            head_dim=64, num_rows=4, max_len=1024,
        ),
        AttentionCase(
            name="mixed, window, soft cap", spans=(Span(1, 900), Span(1, 40), Span(60, 700)), dtype="float32",
            is_int8=True, num_kv_heads=1, group=3, head_dim=64, window=300, soft_cap=5.0, num_rows=8, max_len=2048,
        ),
        AttentionCase(
            name="prompts, shared", spans=(Span(200, 64), Span(100, 64, 4), Span(130, 40, 2), Span(2, 64, 4)),
            num_kv_heads=4, group=1, num_tokens=512, num_rows=8, max_len=4096,
        ),
    ),
    rope=(
        RopeCase(dtype="bfloat16", num_kv_heads=8, group=4, head_dim=128, num_tokens=128, num_real=100),
        RopeCase(dtype="float16", num_kv_heads=2, group=1, head_dim=64, num_tokens=32, num_real=5),
        RopeCase(dtype="float32", num_kv_heads=1, group=3, head_dim=256, num_tokens=1, num_real=1),
        RopeCase(dtype="bfloat16", num_kv_heads=1, group=71, head_dim=64, num_tokens=16, num_real=16),
        RopeCase(dtype="bfloat16", num_kv_heads=8, group=4, head_dim=128, num_tokens=64, num_real=60, is_int8=True),
        RopeCase(dtype="float32", num_kv_heads=1, group=3, head_dim=64, num_tokens=32, num_real=31, is_int8=True),
    ),
    thresholds=(
        ThresholdsCase(num_rows=1, vocab_size=32000),
        ThresholdsCase(num_rows=2, vocab_size=128256),
        ThresholdsCase(num_rows=128, vocab_size=32000),
    ),
    copies=tuple(
        CopyCase(dtype=dtype, num_pairs=num_pairs, num_pages=64, num_kv_heads=8, head_dim=128, page_size=16)
        for dtype, num_pairs in (("bfloat16", 9), ("float16", 2), ("float32", 1), ("int8", 9))
    ),
)  # fmt: skip
TINY = CorrectPlan(
    attention=(
        AttentionCase(
            name="decodes, shared", spans=(Span(1, 40), Span(1, 33, 2), Span(1, 0)), head_dim=64, num_tokens=4,
            num_rows=4, max_len=64,
        ),
        AttentionCase(
            name="mixed, few tokens", spans=(Span(1, 40), Span(5, 20)), dtype="float32", is_int8=True, num_kv_heads=1,
            group=3, head_dim=64, window=17, soft_cap=5.0, num_tokens=32, num_rows=4, max_len=64,
        ),
    ),
    rope=(
        RopeCase(dtype="bfloat16", num_kv_heads=2, group=4, head_dim=64, num_tokens=8, num_real=5),
        RopeCase(dtype="float32", num_kv_heads=1, group=3, head_dim=64, num_tokens=4, num_real=3, is_int8=True),
    ),
    thresholds=(ThresholdsCase(num_rows=9, vocab_size=500),),
    copies=(
        CopyCase(dtype="bfloat16", num_pairs=3, num_pages=8, num_kv_heads=2, head_dim=64, page_size=4),
        CopyCase(dtype="int8", num_pairs=1, num_pages=8, num_kv_heads=2, head_dim=64, page_size=4),
    ),
)  # fmt: skip


def plan_of(*, is_tiny: bool) -> CorrectPlan:
    return TINY if is_tiny else FULL
