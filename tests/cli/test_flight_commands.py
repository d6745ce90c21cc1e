"""A flight record on the command line: `bench throughput` writes one, `simulate replay` makes the run again, `explain` tells of a request; docs/flight-recorder.md."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.cli.explain import CAUSE_TEXT, QUEUE_TEXT
from sarathi_jax.cli.main import main
from sarathi_jax.engine.flight_record import (
    Aborted,
    Arrived,
    Completed,
    Failed,
    Finished,
    Header,
    Idle,
    RequestFacts,
    Scheduled,
)

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "flight-recorder.md").read_text(encoding="utf-8")
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


def test_explain_tells_of_a_request_of_the_real_engine(capsys: Captured, record: Path) -> None:
    """Requests of 20 prompt tokens come at once, one runs at a time, 16 tokens a step: the last one waits for a slot, and reads its prompt in two steps."""
    report: dict[str, Any] = json.loads(run(capsys, "explain", str(record), "#5", "--slo-ms", "0.0001", "--json"))
    assert [(chunk["start"], chunk["num_tokens"]) for chunk in report["chunks"]] == [(0, 16), (16, 4)]
    assert (report["num_tokens"], report["end"], len(report["late"])) == (12, "length", 11)
    assert report["queue"][0]["kind"] == "slots"
    for token in [report["first_token"], *report["late"]]:
        assert sum(cause["seconds"] for cause in token["causes"]) == pytest.approx(token["gap_s"], abs=1e-6)
    text = run(capsys, "explain", str(record), report["request"])
    assert text.startswith(f"{report['request']}: 20 prompt tokens, 12 tokens of output\n    0.000 s  arrived\n")
    assert re.search(r" s  as many requests ran as may: request-\d+, request-\d+", text)
    assert re.search(r"time between tokens: median \d\.\d{3} s, longest .* s, twice the median of the record", text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nobody"], "must hold the request, got nobody, which is not there: choose one of request-0, request-1"),
        (["#0", "--slo-ms", "0"], "--slo-ms must be above 0, got 0.0: pass a positive number."),
    ],
)
def test_a_wrong_question_is_a_users_error(capsys: Captured, record: Path, words: list[str], said: str) -> None:
    assert main(["explain", str(record), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def stalled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's example records."""
    path = tmp_path_factory.mktemp("stalled") / "stalled.jsonl"
    command = [sys.executable, "examples/record_a_stall.py", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return path


def test_the_page_shows_what_is_printed(capsys: Captured, stalled: Path) -> None:
    assert "sarathi-jax explain stalled.jsonl chat --slo-ms 100\n" in PAGE
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert run(capsys, "explain", str(stalled), "chat", "--slo-ms", "100") == shown
    assert json.loads(run(capsys, "simulate", "replay", str(stalled), "--json"))["is_identical"]


def test_the_page_names_every_cause_and_every_field() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert {*CAUSE_TEXT, *QUEUE_TEXT} <= named
    structs = (Header, RequestFacts, Arrived, Scheduled, Idle, Completed, Failed, Aborted, Finished)
    assert {name for struct in structs for name in struct.__struct_fields__} <= named
    assert {str(struct.__struct_config__.tag) for struct in structs} <= named
