"""What the kernels compute, written for reading: numpy, one query head at a time, in the precision that its caller asks for.

Shares no code, no default and no layout trick with the kernels it checks; every argument has to be given. Slow on purpose.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


def ragged_paged_attention(
    *,
    q: Array,
    k_pages: Array,
    v_pages: Array,
    kv_lens: Array,
    block_tables: Array,
    cu_q_lens: Array,
    page_size: int,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    dtype: npt.DTypeLike,
) -> Array:
    """Attention of every token over its own row's tokens, as `sarathi_jax.kernels.ragged_attention_xla` describes it.

    Args:
      q, k_pages, v_pages, kv_lens, block_tables, cu_q_lens: as there.
      dtype: every number is computed in it (float64 to judge float32).

    Returns: [T, H, D] of dtype; zeros for tokens of no row.
    """
    out = np.zeros(q.shape, dtype)
    group = q.shape[1] // k_pages.shape[1]
    for row, kv_len in enumerate(kv_lens.tolist()):
        slots = [block_tables[row, p // page_size] * page_size + p % page_size for p in range(kv_len)]
        first, end = int(cu_q_lens[row]), int(cu_q_lens[row + 1])
        for token in range(first, end):
            position = kv_len - end + token
            start = 0 if window is None else max(0, position - window + 1)
            seen = slots[start : position + 1]
            for head in range(q.shape[1]):
                keys, values = (pool[seen, head // group].astype(dtype) for pool in (k_pages, v_pages))
                scores = keys @ q[token, head].astype(dtype) * np.asarray(scale, dtype)
                if soft_cap is not None:
                    scores = np.tanh(scores / np.asarray(soft_cap, dtype)) * np.asarray(soft_cap, dtype)
                weights = np.exp(scores - scores.max())
                out[token, head] = weights @ values / weights.sum()
    return out


def rope_and_write_kv(
    *, qkv: Array, positions: Array, frequencies: Array, k_pages: Array, v_pages: Array, slot_mapping: Array
) -> tuple[Array, Array, Array]:
    """Queries f64[T, H, D] rotated, and copies of the pages in which slot slot_mapping[t] holds token t's rotated key and its value.

    Args:
      qkv: [T, K, G + 2, D]. positions: i32[T]. frequencies: f64[D / 2], radians a position. slot_mapping: as there; slots past the end are left out.
    """
    num_tokens, num_kv_heads, parts, head_dim = qkv.shape
    q = np.zeros((num_tokens, num_kv_heads * (parts - 2), head_dim))
    k_pages, v_pages = k_pages.copy(), v_pages.copy()
    for token, slot in enumerate(slot_mapping.tolist()):
        turns = np.exp(1j * positions[token] * frequencies)
        for kv_head in range(num_kv_heads):
            heads = qkv[token, kv_head].astype(np.float64)
            # A pair of numbers is one complex number, and a rotation is a product.
            turned = (heads[:-1, : head_dim // 2] + 1j * heads[:-1, head_dim // 2 :]) * turns
            turned = np.concatenate([turned.real, turned.imag], axis=-1)
            q[token, kv_head * (parts - 2) : (kv_head + 1) * (parts - 2)] = turned[:-1]
            if slot < k_pages.shape[0]:
                k_pages[slot, kv_head], v_pages[slot, kv_head] = turned[-1], heads[-1]
    return q, k_pages, v_pages


def copy_pages(*, pages: Array, sources: Array, targets: Array, page_size: int) -> Array:
    """A copy of pages [P * B, ...] in which page targets[i] is page sources[i]; targets past the end are left out."""
    copied = pages.copy()
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        if target < pages.shape[0] // page_size:
            copied[target * page_size : (target + 1) * page_size] = pages[source * page_size : (source + 1) * page_size]
    return copied
