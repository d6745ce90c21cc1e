"""Requests read from a CSV file: lengths and times of arrival."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.workloads import RequestShape

TRACE_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


def read_trace(path: Path, max_requests: int | None = None) -> list[RequestShape]:
    """The first rows of a CSV file, by arrival. Raises: ConfigError if it can't be read, lacks a column, or holds a wrong number."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or ())
            shapes = [_read_row(path, line, row) for line, row in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"the trace {path} must be a CSV file, got {error}: check its name and contents.") from error
    if not shapes:
        raise ConfigError(f"the trace {path} must have rows, got only a header: add requests.")
    return sorted(shapes)[:max_requests]


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in TRACE_COLUMNS if name not in columns]
    if missing:
        raise ConfigError(
            f"the trace {path} must have columns {','.join(TRACE_COLUMNS)}, got {','.join(columns) or 'none'}: "
            f"add {', '.join(missing)}."
        )


def _read_row(path: Path, line: int, row: Mapping[str, str]) -> RequestShape:
    try:
        shape = RequestShape(float(row["arrival_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
        if 0 <= shape.arrival_s < float("inf") and min(shape.num_prompt_tokens, shape.num_output_tokens) > 0:
            return shape
    except (TypeError, ValueError):
        pass
    got = ",".join(str(row[name]) for name in TRACE_COLUMNS)
    raise ConfigError(
        f"line {line} of the trace {path} must hold an arrival >= 0 and two counts >= 1, got {got}: mend that line."
    )
