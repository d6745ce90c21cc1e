"""The parts of the card and the child processes that make them up, one after the other: each ends before the next one takes the device's memory."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.order import MAX_REASON, Order, Row

NUM_LAST_LINES = 5  # of what a child said, for the reason that it ended early
MODELS = ("mistral-7b", "llama3-8b")
OnRows = Callable[[list[Row]], None]  # told of all rows so far, whenever there is another


def _ignore(rows: list[Row]) -> None:
    del rows


@dataclass(frozen=True, slots=True)
class Child:
    """module: in benchmarks/gpu. needs: packages without which there is nothing to run. is_beside: its rows are for the children after it.

    is_full_only: left out where sizes are tiny.
    """

    module: str
    model: str = MODELS[0]
    needs: tuple[str, ...] = ()
    is_beside: bool = False
    is_full_only: bool = False


PARTS: dict[str, tuple[Child, ...]] = {
    "correct": (Child("correct"),),
    "ceilings": (Child("ceilings"),),
    "attention": (Child("attention_torch", needs=("torch",), is_beside=True), Child("attention")),
    "step": (Child("step"), Child("step", MODELS[1], is_full_only=True)),
    "engine": (Child("engine"),),
    "policies": (Child("policies"),),
    "compare": (
        Child("compare_transformers", needs=("torch", "transformers"), is_beside=True),
        Child("compare"),
    ),
}
# Their figures are put into proportion to what the device reaches.
NEED_CEILINGS = ("attention", "step")


def with_ceilings(names: Sequence[str]) -> list[str]:
    """The parts to run, in their order, with the ceilings if one of them needs them."""
    wanted = {*names, *(["ceilings"] if {*names} & {*NEED_CEILINGS} else [])}
    return [name for name in PARTS if name in wanted]


def run_part(
    name: str, order: Order, environment: dict[str, str], timeout_s: float, on_rows: OnRows = _ignore
) -> list[Row]:
    """All rows of a part. timeout_s: of each child. on_rows: told of the part's rows as they come."""
    rows: list[Row] = []
    for child in PARTS[name]:
        if child.is_full_only and order.is_tiny:
            continue
        before = [*rows]
        found = run_child(child, order, environment, timeout_s, lambda found, before=before: on_rows(before + found))
        if child.is_beside:
            order = replace(order, beside={row["case"]: row for row in found})
        rows += found
        on_rows(rows)
    return rows


def run_child(
    child: Child, order: Order, environment: dict[str, str], timeout_s: float, on_rows: OnRows = _ignore
) -> list[Row]:
    """Rows of one child; if it is not there to run, or ends early, the last row says why."""
    missing = [package for package in child.needs if find_spec(package) is None]
    if missing:
        return [{"kind": child.module, "case": "all", "skipped": f"not installed: {', '.join(missing)}"}]
    if not order.is_tiny:
        order = replace(order, model=child.model)
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers"
        answers.touch()
        asked = Path(folder) / "order"
        asked.write_text(order.to_json(), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.gpu.child", child.module, str(asked), str(answers)]
        reason = _run(command, environment, timeout_s, lambda: on_rows(_read(answers)))
        rows = _read(answers)
    return rows + ([{"kind": "ended", "case": child.module, "failed": reason}] if reason else [])


def _read(answers: Path) -> list[Row]:
    """The rows that are there whole."""
    lines = answers.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _run(command: list[str], environment: dict[str, str], timeout_s: float, on_line: Callable[[], None]) -> str | None:
    """Run a command in a process group of its own; what it says goes to our standard error. Returns: why it did not end well, or None."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        process_group=0,
    )
    assert process.stdout is not None, "it is a pipe"
    is_late, last_lines = threading.Event(), deque[str](maxlen=NUM_LAST_LINES)

    def end() -> None:
        is_late.set()
        _kill(process)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    with process:
        try:
            for line in process.stdout:
                sys.stderr.write(line)
                sys.stderr.flush()
                last_lines.append(line)
                on_line()
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
    if is_late.is_set():
        return f"it took longer than {timeout_s:.0f} s"
    said = " ".join(" ".join(last_lines).split())
    return f"exit code {process.returncode}: {said[-MAX_REASON:]}" if process.returncode else None


def _kill(process: "subprocess.Popen[str]") -> None:
    """End a child and what it started; what has ended is left alone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def child_environment(compile_cache: Path | None) -> dict[str, str]:
    """Children find each other's programs in one folder, and so does the next run; what the caller has set stays. None: the user's cache folder."""
    defaults = {"JAX_COMPILATION_CACHE_DIR": str(compile_cache)} if compile_cache else {}
    defaults |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
    return defaults | os.environ
