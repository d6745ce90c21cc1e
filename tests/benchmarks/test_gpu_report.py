"""The GPU card's JSON while it grows, and what its command says and returns when numbers are wrong or kernels are not the GPU's."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu_card
from benchmarks.gpu.checks import attention_obstacle
from benchmarks.gpu.order import Order, Row
from benchmarks.gpu.report import Report

CPU = {"kind": "device", "case": "device", "platform": "cpu", "name": "cpu", "obstacle": None}
SLOW = CPU | {"platform": "gpu", "name": "a GPU", "obstacle": "attention is xla, not triton: it is not installed"}
RIGHT: Row = {"kind": "copy_pages", "case": "x", "share_of_bound": 0.5}
WRONG: Row = {"kind": "copy_pages", "case": "y", "failed": "3 of 9 bytes have changed"}


def test_the_file_holds_all_rows_so_far(tmp_path: Path):
    output = tmp_path / "card.json"
    report = Report(CPU, is_tiny=True, output=output)
    for rows in ([RIGHT], [RIGHT, WRONG]):
        report.put("correct", 1.5, rows)
        found = json.loads(output.read_text())
        assert (found["parts"]["correct"]["rows"], found["complete"]) == (rows, False)
        assert found["goals"][0]["met"] is (rows == [RIGHT])
    assert json.loads(report.finish()) == json.loads(output.read_text())
    assert json.loads(output.read_text())["complete"] is True
    assert list(tmp_path.iterdir()) == [output]


def run_main(monkeypatch: pytest.MonkeyPatch, device: Row, rows: list[Row], *arguments: str) -> int:
    """Its exit code, when the only part's rows are these."""

    def run_part(name: str, order: Order, environment: Any, timeout_s: float, put: Callable[[list[Row]], None]) -> Any:
        assert (name, order.has_flex, timeout_s) == ("correct", "--flex" in arguments, 240.0)
        put(rows)
        return rows

    monkeypatch.setattr(gpu_card, "probe", lambda environment: device)
    monkeypatch.setattr(gpu_card, "run_part", run_part)
    monkeypatch.setattr(sys, "argv", ["gpu_card", "--only", "correct", *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu_card.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_wrong_numbers_are_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run_main(monkeypatch, CPU, [RIGHT]) == 0
    assert "WRONG" not in capsys.readouterr().out
    assert run_main(monkeypatch, CPU, [RIGHT, WRONG], "--flex") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "!!! NUMBERS ARE WRONG: see the part `correct`. !!!" in lines
    assert json.loads(lines[-1])["goals"][0]["met"] is False


def test_kernels_that_are_not_the_gpus_are_named_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_main(monkeypatch, SLOW, [RIGHT])
    lines = capsys.readouterr().out.splitlines()
    warning = "!!! NOT THE GPU'S OWN KERNELS: attention is xla, not triton: it is not installed."
    assert lines[0].startswith(warning)
    assert lines[lines.index("== correct (0 s)") + 1].startswith(warning)


def test_the_compile_cache_is_its_owners_and_outlives_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_main(monkeypatch, CPU, [RIGHT], "--output", str(tmp_path / "card.json"))
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "card.cache"}
    assert (tmp_path / "card.cache").stat().st_mode & 0o777 == 0o700


def test_attention_that_is_not_the_gpus_own_is_seen():
    old = SimpleNamespace(platform="gpu", compute_capability="7.0", core_count=80)
    found = attention_obstacle(old)
    assert found is not None and found.startswith("attention is xla, not triton: ")
    assert attention_obstacle(SimpleNamespace(platform="cpu")) is None
