"""A flight record on the command line: `bench throughput` writes one, `simulate replay` makes the run again."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.cli.main import main

Captured = pytest.CaptureFixture[str]


def run(capsys: Captured, *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def record(tiny_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "run.jsonl.gz"
    lengths = ["--num-requests", "5", "--prompt-tokens", "20", "--output-tokens", "12"]
    assert main(["bench", "throughput", *tiny_options, *lengths, "--flight-record", str(path)]) == 0
    return path


def test_a_recorded_run_is_replayed(capsys: Captured, record: Path) -> None:
    report: dict[str, Any] = json.loads(run(capsys, "simulate", "replay", str(record), "--json"))
    # One request before the others warms the process up.
    assert (report["is_identical"], report["num_requests"], report["difference"]) == (True, 6, None)
    assert (report["step_times"]["num_steps"], report["num_preemptions"]) == (
        report["num_steps"] - report["num_steps"] // 2,
        0,
    )
    text = run(capsys, "simulate", "replay", str(record))
    assert f"decisions   identical: {report['num_bytes']} bytes, SHA-256 {report['decisions'][:16]}" in text
    assert re.search(r"error \d+\.\d% median, .* from the first \d+ steps", text)


def test_a_run_that_cannot_be_made_again_is_told(capsys: Captured, record: Path, tmp_path: Path) -> None:
    text = gzip.decompress(record.read_bytes()).decode()
    other = tmp_path / "other.jsonl"
    other.write_text(text.replace('"admitted":[[0,0,[0', '"admitted":[[0,0,[1', 1))
    assert main(["simulate", "replay", str(other)]) == 1
    out = capsys.readouterr().out
    assert "decisions   differ at event 1, step 0: admitted\n  recorded  [(0, 0, [1" in out
    assert "\n  replayed  [(0, 0, [0" in out


def test_a_file_that_is_no_record_is_a_users_error(capsys: Captured, tmp_path: Path) -> None:
    assert main(["simulate", "replay", str(tmp_path / "nowhere")]) == 2
    assert "simulate replay: error: A flight record must have a file that can be read" in capsys.readouterr().err
