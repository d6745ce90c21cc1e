"""Counts and floors of the GPU card: bytes, floating-point operations, and the least time that they can take. Pure arithmetic; letters as in docs/shapes.md.

Attention: a query at position p sees p + 1 keys. For each of them and each query head, q . k is D multiplications and as many additions, and so is adding the
weighted value: 4 D operations. Softmax is not counted. A chunk of c tokens after h older ones has

    pairs = (h + 1) + (h + 2) + ... + (h + c) = c h + c (c + 1) / 2

of a query and a key it sees, exactly: nothing above the diagonal, no padding. A product [M, K'] x [K', N] is 2 M K' N operations.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sarathi_jax.models.config import ModelConfig

EMBEDDING = "embedding.embedding"  # the one parameter of which a step reads rows, and not all
MIXED_LARGER, MIXED_SMALLER = 1.1, 0.25


def ceilings_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The best copy and the best product among the rows of `ceilings`, as far as they were measured."""
    measures = {"copy_bytes_per_s": "bytes_per_s", "matmul_flops_per_s": "flops_per_s"}
    found = {
        name: [row[figure] for row in rows if figure in row and row["case"] != "read"]
        for name, figure in measures.items()
    }
    return {name: max(values) for name, values in found.items() if values}


def causal_pairs(chunk: int, history: int) -> int:
    """Pairs of a query and a key it sees, in a chunk after `history` older tokens."""
    return chunk * history + chunk * (chunk + 1) // 2


def attention_flops(num_pairs: int, num_heads: int, head_dim: int) -> int:
    """Of all query heads of one layer."""
    return 4 * num_pairs * num_heads * head_dim


def matmul_flops(m: int, k: int, n: int) -> int:
    return 2 * m * k * n


def kv_bytes(num_tokens: int, num_kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Keys and values of so many tokens in one layer."""
    return 2 * num_tokens * num_kv_heads * head_dim * itemsize


def layer_parameters(config: "ModelConfig") -> int:
    """Numbers in the weight products of one layer: qkv, attention output, gate and up, down. Norms and biases are not counted."""
    heads = config.num_heads + 2 * config.num_kv_heads
    attention = config.hidden_size * config.head_dim * (heads + config.num_heads)
    return attention + 3 * config.hidden_size * config.intermediate_size


def prefill_flops(config: "ModelConfig", chunk: int, history: int) -> int:
    """Operations that a step of one chunk can't do without: weight products of its tokens, attention, and the head for the one row that needs logits."""
    products = config.num_layers * matmul_flops(chunk, 1, layer_parameters(config))
    attention = attention_flops(causal_pairs(chunk, history), config.num_heads, config.head_dim)
    return products + config.num_layers * attention + matmul_flops(1, config.hidden_size, config.vocab_size)


def weight_bytes_read(num_bytes: Mapping[str, int], *, is_head_tied: bool) -> int:
    """Weight bytes that a step reads whole. num_bytes: of each parameter, by path. The embedding table is one of them only if it is the head as well."""
    return sum(size for path, size in num_bytes.items() if is_head_tied or path != EMBEDDING)


def decode_floor_s(num_weight_bytes: int, num_kv_bytes: int, copy_bytes_per_s: float) -> float:
    """The least time of a decode step: reading weights and KV once."""
    return (num_weight_bytes + num_kv_bytes) / copy_bytes_per_s


def mixed_allowance_s(part_s: float, other_s: float) -> float:
    """What a launch of two parts may take: 1.1 times the larger alone and a quarter of the smaller alone."""
    return MIXED_LARGER * max(part_s, other_s) + MIXED_SMALLER * min(part_s, other_s)


def idle_share(period_s: float, device_s: float) -> float:
    """The part of the time from one step's end to the next one's in which the device had nothing to do; below 0 by noise alone."""
    return 1 - device_s / period_s
