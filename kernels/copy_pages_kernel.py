# Triton reads the source of these functions: its types are not Python's.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The device code of copying KV pages, for Triton: a program copies a block of one page."""

import triton
import triton.language as tl


@triton.jit
def copy_pages_kernel(pages, sources, targets, NUM_PAGES: tl.constexpr, NUMBERS: tl.constexpr, BLOCK: tl.constexpr):
    """Grid: (n * ceil(NUMBERS / BLOCK),). NUMBERS: of a page."""
    pair, block = tl.program_id(0) // tl.cdiv(NUMBERS, BLOCK), tl.program_id(0) % tl.cdiv(NUMBERS, BLOCK)
    source, target = tl.load(sources + pair).to(tl.int64), tl.load(targets + pair).to(tl.int64)
    if target < NUM_PAGES:
        number = block * BLOCK + tl.arange(0, BLOCK)
        copied = tl.load(pages + source * NUMBERS + number, mask=number < NUMBERS)
        tl.store(pages + target * NUMBERS + number, copied, mask=number < NUMBERS)
