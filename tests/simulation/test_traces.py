"""Requests read from CSV files."""

from pathlib import Path

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.traces import read_trace
from sarathi_jax.simulation.workloads import RequestShape


def trace(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_read_by_arrival_whatever_its_columns_order(tmp_path: Path) -> None:
    path = trace(tmp_path, "output_tokens,arrival_s,prompt_tokens,note\n3,2.5,7,late\n1,0,9,first\n2,9,9,last\n")
    assert read_trace(path) == [RequestShape(0.0, 9, 1), RequestShape(2.5, 7, 3), RequestShape(9.0, 9, 2)]
    assert read_trace(path, max_requests=1) == [RequestShape(0.0, 9, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,prompt,output_tokens\n0,1,1\n", "got arrival_s,prompt,output_tokens: add prompt_tokens."),
        ("", "must have columns arrival_s,prompt_tokens,output_tokens, got none"),
        ("arrival_s,prompt_tokens,output_tokens\n", "must have rows, got only a header"),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,1,1\n-1,2,3\n",
            "line 3 of the trace .* got -1,2,3: mend that line.",
        ),
        ("arrival_s,prompt_tokens,output_tokens\nnan,2,3\n", "line 2 of the trace .* got nan,2,3"),
        ("arrival_s,prompt_tokens,output_tokens\n0,2.5,3\n", "line 2 of the trace .* got 0,2.5,3"),
        ("arrival_s,prompt_tokens,output_tokens\n0,2\n", "line 2 of the trace .* got 0,2,None"),
    ],
)
def test_a_wrong_trace_is_refused_by_name_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_trace(trace(tmp_path, text))
