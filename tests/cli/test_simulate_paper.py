"""`simulate paper`: what it prints of a grid that is given, and what it refuses."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.cli.main import main
from sarathi_jax.lab.paper_grid import Grid, Row, Task
from sarathi_jax.lab.paper_runs import bubble_rows
from sarathi_jax.simulation.rate_search import Trial


def given_grid(tasks: list[Task], *, num_processes: int, on_done: Callable[[int, Row], None] | None) -> Grid:
    """A grid whose searches took no time: sarathi serves four times what the others do."""
    at = Trial(1.0, True, False, 0.1, 0.2, 0.3, 4.0, 1.05, 0)
    return Grid([Row(t.model, t.lengths, t.slo, t.label, 2.0 if t.label == "sarathi" else 0.5, at, 3) for t in tasks])


@pytest.fixture
def without_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarathi_jax.lab.paper_report.run_grid", given_grid)
    monkeypatch.setattr("sarathi_jax.lab.paper_report.bubble_rows", partial(bubble_rows, 32))


@pytest.mark.usefixtures("without_searches")
def test_it_says_what_was_got_beside_the_paper(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        main(["simulate", "paper", "--models", "yi-34b", "--num-requests", "8", "--plot", str(tmp_path / "new")]) == 0
    )
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("yi-34b sharegpt strict"))
    assert line.split()[4:] == ["s", "0.500", "0.500", "2.000", "4.00", "4.0", "4.00", "3.7", "4.0s", "1.05"]
    assert "ok   F19 yi-34b sharegpt strict: sarathi over orca (section 5.1): 4.00 (wanted: 4 within 15%)" in out
    assert "NOT  F19 yi-34b sharegpt relaxed: sarathi over vllm (section 5.2): 4.00 (wanted: 1.65 within 15%)" in out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"capacity.png", "steps.png"}


@pytest.mark.usefixtures("without_searches")
def test_json_holds_rows_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "paper", "--models", "yi-34b", "--num-requests", "8", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["num_requests"] == 8 and len(report["capacities"]) == 4 * 3 + 4
    assert {row["scheduler"] for row in report["ablation"]} == {"hybrid batches alone", "chunks alone", "both"}
    assert {"name", "wanted", "got", "is_met"} == set(report["checks"][0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "gpt-5"], "--models must be of mistral-7b, yi-34b, llama2-70b, falcon-180b, got gpt-5"),
        (["--num-requests", "0"], "--num-requests must be at least 1, got 0"),
        (["--plot", __file__], "--plot must be a folder"),
    ],
)
def test_wrong_options(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "paper", *words]) == 2
    assert message in capsys.readouterr().err
