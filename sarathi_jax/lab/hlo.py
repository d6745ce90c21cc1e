"""What stands in a compiled program's optimized HLO: copies of arrays of a given shape, calls of kernels. Text in, numbers out."""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence

_INSTRUCTION = re.compile(
    r"= [a-z]+\d+\[([\d,]*)\]\S* (?:copy|copy-start|concatenate|dynamic-update-slice|transpose)\("
)
_KERNEL = re.compile(r'custom_call_target="(triton_kernel_call[^"]*)"')
_SLICED_CALL = re.compile(r"^%dynamic-slice-fusion\S* \(", re.MULTILINE)


def count_copies(text: str, shapes: Collection[Sequence[int]]) -> int:
    """Instructions that make a new array as large as one of these, whatever its axes are folded into: copies, and what copies by another name."""
    sizes = {math.prod(shape) for shape in shapes}
    found = (
        math.prod(int(number) for number in numbers.split(",") if number) for numbers in _INSTRUCTION.findall(text)
    )
    return sum(size in sizes for size in found)


def kernel_calls(text: str) -> Counter[str]:
    """Calls of Triton kernels, by the name of their target."""
    return Counter(_KERNEL.findall(text))


def count_sliced_calls(text: str) -> int:
    """Kernels that read a slice of an array in place, wherever in it that begins."""
    return len(_SLICED_CALL.findall(text))
