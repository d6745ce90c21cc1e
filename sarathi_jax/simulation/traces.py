"""Requests read from a CSV file: lengths, times of arrival, and conversations, in this project's columns or in those of public traces."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.workloads import RequestShape, check_count

# What must be there; conversation, think_s, slo_class and client_id may be.
TRACE_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
# Those of Sarathi-Serve's and Vidur's traces, which say nothing else that is of use.
PUBLIC_COLUMNS = ("num_prefill_tokens", "num_decode_tokens")
PUBLIC_ARRIVAL = "arrived_at"


class _Row(NamedTuple):
    line: int
    shape: RequestShape
    conversation: str


def read_trace(path: Path, max_requests: int | None = None, shuffle_seed: int | None = None) -> list[RequestShape]:
    """The first requests of a CSV file, by arrival.

    Rows of one `conversation` are its rounds, each prompt counting all of the rounds before. Public traces without times arrive all at once.

    Args:
      shuffle_seed: put the requests, whole conversations together, into another order first; the times at which somebody arrives stay.
    Raises: ConfigError if it can't be read, lacks a column, or holds a wrong number.
    """
    if max_requests is not None:
        check_count(max_requests)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = _columns(path, reader.fieldnames or ())
            rows = [_read_row(path, line, row, columns) for line, row in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"the trace {path} must be a CSV file, got {error}: check its name and contents.") from error
    if not rows:
        raise ConfigError(f"the trace {path} must have rows, got only a header: add requests.")
    _check_rounds(path, rows)
    if shuffle_seed is not None:
        rows = _shuffled(rows, shuffle_seed)
    return _linked(sorted(rows, key=_arrival_s)[:max_requests])


def _arrival_s(row: _Row) -> float:
    return row.shape.arrival_s


def _columns(path: Path, header: Sequence[str]) -> tuple[str | None, str, str]:
    """What arrivals, prompts and outputs are called in this file."""
    missing = [name for name in TRACE_COLUMNS if name not in header]
    if not missing:
        return TRACE_COLUMNS
    if all(name in header for name in PUBLIC_COLUMNS):
        return PUBLIC_ARRIVAL if PUBLIC_ARRIVAL in header else None, *PUBLIC_COLUMNS
    raise ConfigError(
        f"the trace {path} must have columns {','.join(TRACE_COLUMNS)}, got {','.join(header) or 'none'}: "
        f"add {', '.join(missing)}, or call them {' and '.join(PUBLIC_COLUMNS)}."
    )


def _read_row(path: Path, line: int, row: Mapping[str | None, str], columns: tuple[str | None, str, str]) -> _Row:
    arrival, prompt, output = columns
    think_s, *names = (row.get(name) or "" for name in ("think_s", "slo_class", "client_id", "conversation"))
    try:
        shape = RequestShape(
            float(row[arrival]) if arrival else 0.0,
            int(row[prompt]),
            int(row[output]),
            think_s=float(think_s or 0),
            slo_class=names[0],
            client_id=names[1],
        )
        is_possible = min(shape.num_prompt_tokens, shape.num_output_tokens) > 0
        if is_possible and all(0 <= seconds < float("inf") for seconds in (shape.arrival_s, shape.think_s)):
            return _Row(line, shape, names[2])
    except (TypeError, ValueError):
        pass
    got = ",".join(str(row[name]) for name in (*columns, "think_s") if name in row)
    raise ConfigError(
        f"line {line} of the trace {path} must hold an arrival >= 0, two counts >= 1 and a pause >= 0, as far as it has them, got {got}: mend that line."
    )


def _check_rounds(path: Path, rows: Sequence[_Row]) -> None:
    last_rounds: dict[str, RequestShape] = {}
    for line, shape, conversation in rows:
        last = last_rounds.get(conversation) if conversation else None
        if last and (shape.num_prompt_tokens <= last.num_tokens or shape.arrival_s < last.arrival_s):
            raise ConfigError(
                f"line {line} of the trace {path} must continue conversation {conversation}, with a prompt of more than the {last.num_tokens} tokens of "
                f"the round before and not arriving before {last.arrival_s} s, got {shape.num_prompt_tokens} tokens at {shape.arrival_s} s: mend that line."
            )
        last_rounds[conversation] = shape


def _shuffled(rows: Sequence[_Row], seed: int) -> list[_Row]:
    """Conversations in another order, at the times at which one started before; pauses within one stay."""
    groups: dict[str | int, list[_Row]] = {}
    for row in sorted(rows, key=_arrival_s):
        groups.setdefault(row.conversation or row.line, []).append(row)
    conversations = list(groups.values())
    shuffled: list[_Row] = []
    for before, number in zip(
        conversations, np.random.default_rng(seed).permutation(len(conversations)).tolist(), strict=True
    ):
        start_s, own_start_s = _arrival_s(before[0]), _arrival_s(conversations[number][0])
        for row in conversations[number]:
            arrival_s = start_s + (row.shape.arrival_s - own_start_s)
            shuffled.append(row._replace(shape=row.shape._replace(arrival_s=arrival_s)))
    return shuffled


def _linked(rows: Sequence[_Row]) -> list[RequestShape]:
    """Each round knows the one before it."""
    places: dict[str, int] = {}
    shapes: list[RequestShape] = []
    for place, row in enumerate(rows):
        shapes.append(row.shape._replace(after=places.get(row.conversation)))
        if row.conversation:
            places[row.conversation] = place
    return shapes
