"""The goals of the GPU card, evaluated from its rows: what was wanted, what was got, and whether that meets it.

`met` is null where something that the goal speaks of was not measured, and, but for counts and for what is right, where the sizes were tiny or attention is not
the GPU's own; in the latter case `obstacle` says why.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.gpu.order import Row

MIN_DECODE_ROWS, MIN_DECODE_CONTEXT = 64, 4096
MAX_STEP_BATCH, PREFILL_CHUNK = 64, 2048


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal. `select` says which rows it speaks of, `figure` which of their numbers; the worst one has to meet the bound.

    is_floor: the number must be at least the bound, else at most. is_speed: it means nothing with tiny sizes, nor without the GPU's own kernels.
    is_check: a row that failed is the goal missed, and not a number that is not there.
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
    is_check: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal as the card reports it. obstacle: why it can't be met or missed here; None if there is nothing in its way."""

    name: str
    goal: str
    got: float | None
    met: bool | None
    obstacle: str | None = None


def _is_large_decode(row: Row) -> bool:
    is_decode = row["kind"] == "decode attention"
    return is_decode and row["num_rows"] >= MIN_DECODE_ROWS and row["context"] >= MIN_DECODE_CONTEXT


def _is_kind(kind: str) -> Callable[[Row], bool]:
    return lambda row: row["kind"] == kind


NUMBERS = "numbers are right"
GOALS = (
    Goal(
        NUMBERS,
        "no case of `correct` is past its bound",
        "correct", lambda row: True, "share_of_bound", 1.0, is_floor=False, is_speed=False, is_check=True,
    ),
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


def evaluate(rows_of_parts: Mapping[str, Sequence[Row]], *, is_tiny: bool, obstacle: str | None = None) -> list[Row]:
    """Every goal: name, goal, got (the worst number), met, obstacle.

    obstacle: why the GPU's own kernels don't run; None if they do, or there is no GPU.
    """
    return [asdict(_outcome(goal, rows_of_parts.get(goal.part, ()), is_tiny, obstacle)) for goal in GOALS]


def _outcome(goal: Goal, rows: Iterable[Row], is_tiny: bool, obstacle: str | None) -> Outcome:
    # What there is no room for on this device is not a case of the goal; what failed is one without a number.
    cases = [row for row in rows if "skipped" not in row and _selects(goal, row)]
    numbers = [float(row[goal.figure]) for row in cases if row.get(goal.figure) is not None]
    worst: float | None = None
    met: bool | None = None
    if numbers:
        worst = min(numbers) if goal.is_floor else max(numbers)
        met = meets(goal, worst)
        if met and len(numbers) < len(cases):
            met = None
    if goal.is_check and any("failed" in row for row in cases):
        met = False
    if goal.is_speed and (is_tiny or obstacle):
        met = None
    return Outcome(goal.name, goal.text, worst, met, obstacle if goal.is_speed else None)


def _selects(goal: Goal, row: Row) -> bool:
    # When the part's own child ended early, what it left out may be the goal's.
    return (row["kind"] == "ended" and row["case"] == goal.part) or goal.select(row)


def meets(goal: Goal, number: float) -> bool:
    if goal.is_strict:
        return number > goal.bound if goal.is_floor else number < goal.bound
    return number >= goal.bound if goal.is_floor else number <= goal.bound
