"""What the kernels compute, written for reading: numpy, one query head at a time, in the precision of its inputs' caller.

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


def write_kv(*, k_pages: Array, v_pages: Array, k: Array, v: Array, slot_mapping: Array) -> tuple[Array, Array]:
    """Copies of the pages in which slot slot_mapping[t] holds token t's key and value; slots past the end are left out."""
    k_pages, v_pages = k_pages.copy(), v_pages.copy()
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot < k_pages.shape[0]:
            k_pages[slot], v_pages[slot] = k[token], v[token]
    return k_pages, v_pages
