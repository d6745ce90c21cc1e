"""The card's JSON while it grows: written to its file after every row, so that a run that is cut off leaves what it has measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import NUMBERS, evaluate
from benchmarks.gpu.machine import commit, versions
from benchmarks.gpu.order import Row


class Report:
    """All that a run has found so far.

    Args:
      device: the probe's row.
      is_tiny: sizes are, and speeds mean nothing.
      output: the file that it is kept in; None: none.
    """

    def __init__(self, device: Row, *, is_tiny: bool, output: Path | None) -> None:
        self.obstacle: str | None = device["obstacle"]
        self._is_tiny, self._output = is_tiny, output
        self._parts: dict[str, Row] = {}
        self._is_complete = False
        self._head: dict[str, Any] = {
            "benchmark": "gpu_card",
            "tiny": is_tiny,
            "commit": commit(),
            "versions": versions(),
            "device": {name: value for name, value in device.items() if name not in ("kind", "case")},
        }

    @property
    def goals(self) -> list[Row]:
        """Of the rows so far."""
        rows_of_parts: Mapping[str, list[Row]] = {name: part["rows"] for name, part in self._parts.items()}
        return evaluate(rows_of_parts, is_tiny=self._is_tiny, obstacle=self.obstacle)

    @property
    def has_wrong_numbers(self) -> bool:
        """Whether a check of the numbers failed."""
        return any(goal["name"] == NUMBERS and goal["met"] is False for goal in self.goals)

    def put(self, part: str, seconds: float, rows: list[Row]) -> None:
        """A part as far as it has come."""
        self._parts[part] = {"seconds": seconds, "rows": [*rows]}
        self._save()

    def finish(self) -> str:
        """The whole JSON, on one line."""
        self._is_complete = True
        self._save()
        return self._text()

    def _text(self) -> str:
        return json.dumps(self._head | {"complete": self._is_complete, "parts": self._parts, "goals": self.goals})

    def _save(self) -> None:
        """In one go: whoever reads the file finds this state or the one before."""
        if self._output is None:
            return
        beside = self._output.with_name(f"{self._output.name}.part")
        beside.write_text(self._text() + "\n", encoding="utf-8")
        beside.replace(self._output)
