"""Rows as text: one table for each run of rows of one kind, numbers in units that people read."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from benchmarks.gpu.order import Row

HIDDEN = ("kind", "lowest_s", "highest_s", "num_weight_bytes", "num_kv_bytes", "num_flops")
HEADINGS = {"bytes_per_s": "rate", "flops_per_s": "rate", "seconds": "time", "num_bytes": "moved"}
SCIENTIFIC = ("error", "bound")
DASH = "-"


def tables(rows: Sequence[Row]) -> str:
    """All rows of a part."""
    texts = [_table(kind, list(group)) for kind, group in groupby(rows, key=lambda row: row.get("kind", ""))]
    return "\n\n".join(texts)


def line(row: Row) -> str:
    """A row by itself."""
    names = [name for name in row if name not in (*HIDDEN, "case")]
    return ", ".join([str(row.get("case", "")), *(f"{_heading(name)} {_cell(name, row[name])}" for name in names)])


def _table(kind: str, rows: list[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in HIDDEN))
    lines = [[_heading(name) for name in columns]]
    lines += [[_cell(name, row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join([f"[{kind}]" if kind else "", *_aligned(lines, widths)]).lstrip("\n")


def _aligned(lines: list[list[str]], widths: list[int]) -> Iterator[str]:
    for line in lines:
        first, *others = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join([first.strip().ljust(widths[0]), *others]).rstrip()


def _heading(name: str) -> str:
    if name in HEADINGS:
        return HEADINGS[name]
    for suffix in ("_bytes_per_s", "_flops_per_s", "_per_s", "_s", "_bytes"):
        if name.endswith(suffix):
            return name.removesuffix(suffix).replace("_", " ") + (" /s" if suffix == "_per_s" else "")
    return name.replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if not isinstance(value, int | float):
        return str(value)
    if name in SCIENTIFIC:
        return f"{value:.1e}"
    if name.endswith("bytes_per_s"):
        return f"{value / 1e9:.1f} GB/s"
    if name.endswith("flops_per_s"):
        return f"{value / 1e12:.2f} TFLOP/s"
    if (name.endswith("_s") and not name.endswith("_per_s")) or name == "seconds":
        return duration(value)
    if "share" in name or name == "bucket_fill":
        return f"{value:.1%}"
    if name.endswith("bytes"):
        return f"{value / 1e9:.2f} GB"
    return f"{value:,d}" if isinstance(value, int) else f"{value:,.2f}"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * scale >= 1 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}" if abs(seconds) * scale < 1000 else f"{seconds * scale:.0f} {unit}"
    raise AssertionError("one of the units fits")
