"""The launches whose attention is timed, with the shapes of mistral-7b: pure numbers, for our child and for PyTorch's alike."""

from dataclasses import dataclass

from benchmarks.gpu.arithmetic import attention_flops, causal_pairs, kv_bytes


@dataclass(frozen=True, slots=True)
class Decodes:
    """num_rows rows of one token each, which see `context` tokens, their own included."""

    num_rows: int
    context: int

    @property
    def name(self) -> str:
        return f"decode {self.num_rows}x{self.context}"

    @property
    def num_kv_tokens(self) -> int:
        return self.num_rows * self.context

    @property
    def num_pairs(self) -> int:
        return self.num_rows * self.context

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """(tokens of this step, tokens in the cache after it) of each row."""
        return ((1, self.context),) * self.num_rows


@dataclass(frozen=True, slots=True)
class Prefill:
    """One row of `chunk` tokens after `history` older ones."""

    chunk: int
    history: int

    @property
    def name(self) -> str:
        return f"prefill {self.chunk}+{self.history}"

    @property
    def num_kv_tokens(self) -> int:
        return self.chunk + self.history

    @property
    def num_pairs(self) -> int:
        return causal_pairs(self.chunk, self.history)

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        return ((self.chunk, self.chunk + self.history),)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A chunk and decodes in one launch, as a hybrid step has them."""

    decodes: Decodes
    prefill: Prefill

    @property
    def name(self) -> str:
        return f"{self.decodes.name} & {self.prefill.name}"

    @property
    def num_kv_tokens(self) -> int:
        return self.decodes.num_kv_tokens + self.prefill.num_kv_tokens

    @property
    def num_pairs(self) -> int:
        return self.decodes.num_pairs + self.prefill.num_pairs

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        return self.decodes.rows + self.prefill.rows


type Case = Decodes | Prefill | Mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """What is measured, over which cache.

    num_arrays, max_slots: pairs of K and V arrays, and the most tokens that each holds; memory may allow fewer.
    distinct_bytes: KV that one chain of calls reads before any of it comes again: several times the device's cache.
    max_calls: of one chain. num_padded_rows: rows of a launch with a chunk, as in an engine's bucket.
    flex: cases that flex_attention is compiled for, which takes it long.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: str
    itemsize: int
    num_arrays: int
    max_slots: int
    distinct_bytes: int
    max_calls: int
    num_padded_rows: int
    decodes: tuple[Decodes, ...]
    prefills: tuple[Prefill, ...]
    mixed: tuple[Mixed, ...]
    flex: tuple[Decodes | Prefill, ...] = ()

    @property
    def max_kv_len(self) -> int:
        """The longest row of all cases."""
        return max(kv_len for case in (*self.decodes, *self.prefills, *self.mixed) for _, kv_len in case.rows)

    @property
    def parts(self) -> tuple[Decodes | Prefill, ...]:
        """Every launch of one kind, those that the mixed ones are made of included, once each."""
        of_mixed = (part for case in self.mixed for part in (case.decodes, case.prefill))
        return tuple(dict.fromkeys((*self.decodes, *self.prefills, *of_mixed)))

    def kv_bytes(self, case: Case) -> int:
        """Keys and values that the case reads, each once."""
        return kv_bytes(case.num_kv_tokens, self.num_kv_heads, self.head_dim, self.itemsize)

    def flops(self, case: Case) -> int:
        return attention_flops(case.num_pairs, self.num_heads, self.head_dim)

    def num_calls(self, case: Case) -> int:
        """Calls in a chain, each with a cache of its own as far as there is room."""
        return max(min(-(-self.distinct_bytes // self.kv_bytes(case)), self.max_calls), min(self.num_arrays, 4))


MAX_SLOTS = 1 << 20
FULL = AttentionPlan(
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    page_size=16,
    dtype="bfloat16",
    itemsize=2,
    num_arrays=8,
    max_slots=MAX_SLOTS,
    distinct_bytes=256 << 20,
    max_calls=64,
    num_padded_rows=128,
    decodes=tuple(
        Decodes(num_rows, context)
        for num_rows in (1, 8, 64, 128, 256)
        for context in (512, 4096, 8192, 32768)
        if num_rows * context <= MAX_SLOTS
    ),
    prefills=tuple(Prefill(chunk, history) for chunk in (128, 512, 2048, 8192) for history in (0, 4096, 32768)),
    mixed=(
        Mixed(Decodes(32, 8192), Prefill(480, 8192)),
        Mixed(Decodes(64, 4096), Prefill(448, 4096)),
        Mixed(Decodes(127, 1024), Prefill(385, 0)),
        Mixed(Decodes(64, 4096), Prefill(1984, 16384)),
        Mixed(Decodes(128, 2048), Prefill(1920, 4096)),
    ),
    flex=(Decodes(64, 4096), Prefill(2048, 0), Prefill(2048, 4096), Prefill(8192, 0)),
)
TINY = AttentionPlan(
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    page_size=4,
    dtype="float32",
    itemsize=4,
    num_arrays=2,
    max_slots=64,
    distinct_bytes=1,
    max_calls=2,
    num_padded_rows=4,
    decodes=(Decodes(2, 16),),
    prefills=(Prefill(8, 8),),
    mixed=(Mixed(Decodes(2, 16), Prefill(8, 8)),),
)


def plan_of(*, is_tiny: bool) -> AttentionPlan:
    return TINY if is_tiny else FULL
