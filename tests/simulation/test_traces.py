"""Requests read from CSV files."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

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


def test_requests_at_the_same_time_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = trace(tmp_path, "arrival_s,prompt_tokens,output_tokens\n1,9,9\n1,2,2\n0,5,5\n1,3,3\n")
    assert [shape.num_prompt_tokens for shape in read_trace(path)] == [5, 9, 2, 3]


@pytest.mark.parametrize(
    ("text", "arrivals_s"),
    [
        ("num_prefill_tokens,num_decode_tokens,pd_ratio\n7,3,2.3\n9,1,9\n", [0.0, 0.0]),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,7,3\n0.75,9,1\n", [0.5, 0.75]),
    ],
)
def test_public_traces_are_told_by_their_header(tmp_path: Path, text: str, arrivals_s: list[float]) -> None:
    shapes = read_trace(trace(tmp_path, text))
    assert shapes == [RequestShape(arrivals_s[0], 7, 3), RequestShape(arrivals_s[1], 9, 1)]


def test_the_public_trace_is_read_whole(chat_trace: NDArray[np.int64], chat_trace_file: Path) -> None:
    shapes = read_trace(chat_trace_file)
    assert np.array_equal(np.array([shape[1:3] for shape in shapes]).T, chat_trace)


CONVERSATIONS = """arrival_s,conversation,prompt_tokens,output_tokens,think_s,slo_class,client_id
0,a,10,5,,interactive,x
1,,8,8,,batch,y
2,b,20,2,,interactive,x
4,a,18,1,1.5,interactive,x
5,b,30,2,2,interactive,x
6,a,25,1,0,interactive,x
"""


def test_rows_of_a_conversation_are_its_rounds(tmp_path: Path) -> None:
    shapes = read_trace(trace(tmp_path, CONVERSATIONS))
    assert [shape.after for shape in shapes] == [None, None, None, 0, 2, 3]
    assert shapes[3] == RequestShape(4.0, 18, 1, after=0, think_s=1.5, slo_class="interactive", client_id="x")
    assert shapes[1] == RequestShape(1.0, 8, 8, slo_class="batch", client_id="y")
    assert [shape.after for shape in read_trace(trace(tmp_path, CONVERSATIONS), max_requests=4)] == [
        None,
        None,
        None,
        0,
    ]


def test_shuffling_moves_whole_conversations_to_times_at_which_somebody_started(tmp_path: Path) -> None:
    path = trace(tmp_path, CONVERSATIONS)
    orders = set()
    for seed in range(20):
        shapes = read_trace(path, shuffle_seed=seed)
        starts = {shape.num_prompt_tokens: shape.arrival_s for shape in shapes if shape.after is None}
        assert sorted(starts.values()) == [0.0, 1.0, 2.0]
        # Rounds come as long after their start as before: `a` at 0, 4 and 6 s, `b` at 2 and 5 s.
        moved = {shape.num_prompt_tokens: shape.arrival_s for shape in shapes}
        assert [moved[18] - starts[10], moved[25] - starts[10], moved[30] - starts[20]] == [4.0, 6.0, 3.0]
        assert [shape.arrival_s for shape in shapes] == sorted(shape.arrival_s for shape in shapes)
        rounds = [
            (shape.num_prompt_tokens, shapes[shape.after].num_prompt_tokens)
            for shape in shapes
            if shape.after is not None
        ]
        assert sorted(rounds) == [(18, 10), (25, 18), (30, 20)]
        orders.add(tuple(sorted(starts, key=starts.__getitem__)))
    # All of the 3! orders: 20 seeds miss one of them in 16 cases of 100.
    assert len(orders) >= 5


def test_a_shuffled_trace_is_cut_after_shuffling(tmp_path: Path) -> None:
    text = "num_prefill_tokens,num_decode_tokens\n" + "".join(f"{count},1\n" for count in range(1, 101))
    path = trace(tmp_path, text)
    drawn = [shape.num_prompt_tokens for shape in read_trace(path, max_requests=10, shuffle_seed=1)]
    assert len(set(drawn)) == 10
    assert max(drawn) > 10
    assert drawn == [shape.num_prompt_tokens for shape in read_trace(path, shuffle_seed=1)[:10]]
    assert sorted(shape.num_prompt_tokens for shape in read_trace(path, shuffle_seed=1)) == list(range(1, 101))


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
        ("num_prefill_tokens,num_decode_tokens\n7,0\n", "line 2 of the trace .* got 7,0: mend that line."),
        (
            "num_prefill_tokens,output_tokens\n7,1\n",
            "add arrival_s, prompt_tokens, or call them num_prefill_tokens and num",
        ),
        ("arrival_s,prompt_tokens,output_tokens,think_s\n0,2,1,-1\n", "a pause >= 0, .* got 0,2,1,-1: mend"),
        (
            "arrival_s,prompt_tokens,output_tokens,conversation\n0,10,5,a\n3,15,5,a\n",
            "line 3 .* conversation a, with a prompt of more than the 15 tokens .* got 15 tokens at 3.0 s",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens,conversation\n3,10,5,a\n2,16,5,a\n",
            "line 3 .* not arriving before 3.0 s, got 16 tokens at 2.0 s",
        ),
    ],
)
def test_a_wrong_trace_is_refused_by_name_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_trace(trace(tmp_path, text))


def test_a_trace_is_not_cut_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_requests must be at least 1, got 0"):
        read_trace(trace(tmp_path, CONVERSATIONS), max_requests=0)
