# Triton reads the source of these functions: its types are not Python's.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The device code of sampling's thresholds, for Triton: a program takes one row, and searches it 16 times over without leaving the device.

The search of `filter_thresholds_xla`, in quarters instead of halves: reading the row is what takes time, and three thresholds cost one reading. A row that uses no
filter ends at once, with no word to the host and no conditional in the program around.
"""

import triton
import triton.language as tl


@triton.jit
def _flip(bits):
    """Bits of a float32 as an int32 of the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key(value):
    """i64, in the order of the floats."""
    return _flip(value.to(tl.float32).to(tl.int32, bitcast=True)).to(tl.int64)


@triton.jit
def _value(key):
    return _flip(key.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def _logits(row_at, start, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    column = start + tl.arange(0, BLOCK)
    return tl.load(row_at + column, mask=column < VOCAB, other=float("-inf"))


@triton.jit
def _weights(logits, highest, temperature, smallest):
    return tl.where(logits >= smallest, tl.exp((logits - highest) / temperature), 0.0)


@triton.jit
def _quarters(low, past):
    """Three keys that part [low, past) into four."""
    return low + (past - low) // 4, low + (past - low) // 2, past - (past - low) // 4 - tl.minimum((past - low) % 4, 1)


@triton.jit
def _narrow(low, past, quarter, half, rest, is_quarter, is_half, is_rest):
    """[low, past) as the part whose start still has enough and whose end has not. A key with enough is never above one without."""
    new_low = tl.where(is_rest, rest, tl.where(is_half, half, tl.where(is_quarter, quarter, low)))
    new_past = tl.where(is_rest, past, tl.where(is_half, rest, tl.where(is_quarter, half, quarter)))
    return new_low, tl.maximum(new_past, new_low + 1)


@triton.jit
def filter_thresholds_kernel(
    logits, max_logits, temperature, top_k, top_p, thresholds, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid: (R,)."""
    row = tl.program_id(0)
    row_at = logits + row.to(tl.int64) * VOCAB
    highest, heat = tl.load(max_logits + row), tl.load(temperature + row)
    k, p = tl.load(top_k + row), tl.load(top_p + row)
    smallest = highest * 0.0 - float("inf")
    if k > 0:
        low, past = _key(smallest), _key(highest) + 1
        for _ in range(16):
            quarter, half, rest = _quarters(low, past)
            in_quarter, in_half, in_rest = (
                tl.zeros((BLOCK,), tl.int32),
                tl.zeros((BLOCK,), tl.int32),
                tl.zeros((BLOCK,), tl.int32),
            )
            for start in range(0, VOCAB, BLOCK):
                values = _logits(row_at, start, VOCAB, BLOCK)
                in_quarter += (values >= _value(quarter)).to(tl.int32)
                in_half += (values >= _value(half)).to(tl.int32)
                in_rest += (values >= _value(rest)).to(tl.int32)
            low, past = _narrow(
                low, past, quarter, half, rest, tl.sum(in_quarter) >= k, tl.sum(in_half) >= k, tl.sum(in_rest) >= k
            )
        smallest = _value(low)
    if p < 1.0:
        mass = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, VOCAB, BLOCK):
            mass += _weights(_logits(row_at, start, VOCAB, BLOCK), highest, heat, smallest)
        target = p * tl.sum(mass)
        low, past = _key(highest * 0.0), _key(highest * 0.0 + 1.0) + 1
        for _ in range(16):
            quarter, half, rest = _quarters(low, past)
            of_quarter, of_half, of_rest = (
                tl.zeros((BLOCK,), tl.float32),
                tl.zeros((BLOCK,), tl.float32),
                tl.zeros((BLOCK,), tl.float32),
            )
            for start in range(0, VOCAB, BLOCK):
                weights = _weights(_logits(row_at, start, VOCAB, BLOCK), highest, heat, smallest)
                of_quarter += tl.where(weights >= _value(quarter), weights, 0.0)
                of_half += tl.where(weights >= _value(half), weights, 0.0)
                of_rest += tl.where(weights >= _value(rest), weights, 0.0)
            low, past = _narrow(
                low,
                past,
                quarter,
                half,
                rest,
                tl.sum(of_quarter) >= target,
                tl.sum(of_half) >= target,
                tl.sum(of_rest) >= target,
            )
        last = tl.full((BLOCK,), float("inf"), tl.float32)
        for start in range(0, VOCAB, BLOCK):
            values = _logits(row_at, start, VOCAB, BLOCK)
            weights = _weights(values, highest, heat, smallest)
            last = tl.minimum(last, tl.where((weights >= _value(low)) & (values >= smallest), values, float("inf")))
        smallest = tl.maximum(smallest, tl.min(last))
    tl.store(thresholds + row, smallest)
