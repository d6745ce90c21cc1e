"""The goals of the GPU card, evaluated from its rows: what was wanted, what was got, and whether that meets it.

`met` is null where something that the goal speaks of was not measured, and, but for counts, where the sizes were tiny.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu.order import Row

MIN_DECODE_ROWS, MIN_DECODE_CONTEXT = 64, 4096
MAX_STEP_BATCH, PREFILL_CHUNK = 64, 2048


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal. `select` says which rows it speaks of, `figure` which of their numbers; the worst one has to meet the bound.

    is_floor: the number must be at least the bound, else at most. is_speed: it means nothing with tiny sizes.
    """

    name: str
    text: str
    part: str
    select: Callable[[Row], bool]
    figure: str
    bound: float
    is_floor: bool = True
    is_speed: bool = True
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal as the card reports it."""

    name: str
    goal: str
    got: float | None
    met: bool | None


def _is_large_decode(row: Row) -> bool:
    is_decode = row["kind"] == "decode attention"
    return is_decode and row["num_rows"] >= MIN_DECODE_ROWS and row["context"] >= MIN_DECODE_CONTEXT


def _is_kind(kind: str) -> Callable[[Row], bool]:
    return lambda row: row["kind"] == kind


GOALS = (
    Goal(
        "decode attention",
        f"at least 85 % of the copy bandwidth from {MIN_DECODE_ROWS} rows of {MIN_DECODE_CONTEXT} tokens on",
        "attention", _is_large_decode, "share_of_copy", 0.85,
    ),
    Goal(
        "prefill attention",
        "no slower than PyTorch's flash attention",
        "attention", _is_kind("prefill attention"), "flash_over_ours", 1.0,
    ),
    Goal(
        "mixed attention",
        "at most 1.1 x the larger part alone + 0.25 x the smaller",
        "attention", _is_kind("mixed attention"), "share_of_allowance", 1.0, is_floor=False,
    ),
    Goal(
        "decode step",
        f"at least 80 % of its floor at batch 1 to {MAX_STEP_BATCH}",
        "step", lambda row: row["kind"] == "decode step" and row["batch"] <= MAX_STEP_BATCH, "share_of_floor", 0.8,
    ),
    Goal(
        "prefill step",
        f"{PREFILL_CHUNK} tokens at 60 % of the measured matmul rate or more",
        "step", lambda row: row["kind"] == "prefill step" and row["chunk"] == PREFILL_CHUNK, "share_of_floor", 0.6,
    ),
    Goal(
        "idle between steps",
        "less than 3 % of a steady decode period",
        "engine", _is_kind("idle"), "idle_share", 0.03, is_floor=False, is_strict=True,
    ),
    Goal(
        "compiles after ready",
        "0",
        "engine", _is_kind("compiles"), "num_compiles", 0, is_floor=False, is_speed=False,
    ),
)  # fmt: skip


def evaluate(rows_of_parts: Mapping[str, Sequence[Row]], *, is_tiny: bool) -> list[Row]:
    """Every goal: name, goal, got (the worst number), met."""
    return [asdict(_outcome(goal, rows_of_parts.get(goal.part, ()), is_tiny)) for goal in GOALS]


def _outcome(goal: Goal, rows: Iterable[Row], is_tiny: bool) -> Outcome:
    # What there is no room for on this device is not a case of the goal; what failed is one without a number.
    found: list[Any] = [row.get(goal.figure) for row in rows if "skipped" not in row and _selects(goal, row)]
    numbers = [float(number) for number in found if number is not None]
    if not numbers:
        return Outcome(goal.name, goal.text, None, None)
    worst = min(numbers) if goal.is_floor else max(numbers)
    met: bool | None = meets(goal, worst)
    if (met and len(numbers) < len(found)) or (is_tiny and goal.is_speed):
        met = None
    return Outcome(goal.name, goal.text, worst, met)


def _selects(goal: Goal, row: Row) -> bool:
    # When the part's own child ended early, what it left out may be the goal's.
    return (row["kind"] == "ended" and row["case"] == goal.part) or goal.select(row)


def meets(goal: Goal, number: float) -> bool:
    if goal.is_strict:
        return number > goal.bound if goal.is_floor else number < goal.bound
    return number >= goal.bound if goal.is_floor else number <= goal.bound
