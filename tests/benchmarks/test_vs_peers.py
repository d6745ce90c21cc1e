"""Engines beside each other: the figures against numbers worked out by hand, loads that arrive as they should, and peers that are not there."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.peers.load import Answer, Order, Request, batch_load, mixed_load, warm_up
from benchmarks.peers.play import play_in_steps
from benchmarks.peers.summary import agreement, batch_figures, medians, mixed_figures
from benchmarks.vs_peers import PEERS, present, start_all

ROOT = Path(__file__).parents[2]


def test_figures_of_a_batch_pool_the_gaps_and_end_with_the_last_token():
    answers = [Answer(0.0, [1, 2, 3], [0.5, 0.6, 1.0]), Answer(0.1, [4, 5], [0.3, 2.0])]
    assert batch_figures(answers) == pytest.approx(
        {
            "output_tokens_per_s": 5 / 2.0,
            "median_ttft_ms": (500 + 200) / 2,
            "max_ttft_ms": 500,
            "median_tbt_ms": 400,  # of 100, 400 and 1700
            "p99_tbt_ms": 400 + 0.98 * 1300,
        }
    )


def test_a_decode_s_gaps_are_told_apart_by_the_long_prompt_beside_them():
    requests = [Request([1], 5), Request([1], 2), Request([1] * 9, 2, after_tokens=2)]
    answers = [
        Answer(0.0, [1] * 5, [1.0, 2.0, 5.0, 6.0, 8.0]),
        Answer(0.0, [1] * 2, [2.5, 3.0]),
        Answer(2.9, [1] * 2, [5.5, 7.5]),
    ]
    assert mixed_figures(requests, answers) == pytest.approx(
        {
            "output_tokens_per_s": 9 / 8.0,
            "median_tbt_ms": 1500,  # 1 -> 2 and 6 -> 8
            "median_tbt_with_prompts_ms": 1000,  # 2 -> 5, 5 -> 6, 2.5 -> 3
            "max_tbt_with_prompts_ms": 3000,
            "median_long_ttft_ms": 2600,
        }
    )


def test_each_figure_has_its_own_median():
    assert medians([{"a": 1.0, "b": 9.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0, "b": 7.0}]) == {"a": 2.0, "b": 7.0}


def test_agreement_ends_with_the_first_other_token():
    ours = [Answer(0.0, [1, 2, 3, 4], []), Answer(0.0, [5, 6], [])]
    theirs = [Answer(0.0, [1, 9, 3, 4], []), Answer(0.0, [5, 6], [])]
    assert agreement(ours, theirs) == {"same_outputs": 0.5, "same_tokens": (1 / 4 + 1) / 2}


def test_loads_are_the_same_every_time_and_long_prompts_come_while_the_others_decode():
    batch, mixed = batch_load(500, 256), mixed_load(500, 256)
    assert batch == batch_load(500, 256)
    assert len(batch) == 16 and {each.max_tokens for each in batch} == {256}
    assert [(len(each.prompt), each.after_tokens) for each in mixed[12:]] == [(1000, 64), (1000, 128), (1000, 192)]
    assert all(5 < token < 500 for each in mixed for token in each.prompt)
    assert all(each.after_tokens < mixed[0].max_tokens for each in (*mixed, *warm_up(mixed)))


class TokenAStep:
    """Gives each request a token a step."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.added: list[tuple[int, int]] = []
        self.num_steps = 0

    def add(self, place: int, prompt: list[int], max_tokens: int) -> None:
        self.left[place] = max_tokens
        self.added.append((place, self.num_steps))

    def step(self) -> list[tuple[int, list[int]]]:
        self.num_steps += 1
        done = [(place, [self.num_steps]) for place, left in self.left.items() if left]
        self.left = {place: max(left - 1, 0) for place, left in self.left.items()}
        return done


def test_a_late_request_arrives_when_the_first_has_its_tokens():
    engine = TokenAStep()
    answers = play_in_steps(engine, [Request([1], 5), Request([1], 2), Request([1], 4, after_tokens=3)])
    assert engine.added == [(0, 0), (1, 0), (2, 3)]
    assert [answer.token_ids for answer in answers] == [[1, 2, 3, 4, 5], [1, 2], [4, 5, 6, 7]]
    assert answers[0].token_times_s[2] <= answers[2].arrival_s <= answers[2].token_times_s[0]


def test_a_peer_that_is_not_there_is_named_with_its_flag():
    names = [peer.name for peer in PEERS]
    found, skipped = present(
        [name for name in names if name != "server"], {"openvino": None, "vllm": "python", "transformers": None}
    )
    assert [peer.name for peer in found] == ["engine", "vllm", "vllm-default", "vllm-server"]
    assert skipped == {
        "server": "--peers does not name it",
        "openvino": "--openvino-python was not given",
        "openvino-default": "--openvino-python was not given",
        "transformers": "--transformers-python was not given",
    }


def test_an_interpreter_without_the_peer_is_told_and_the_others_go_on(tmp_path: Path):
    peers = [peer for peer in PEERS if peer.name in ("openvino", "transformers")]
    interpreters: dict[str, str | None] = {"openvino": sys.executable, "transformers": sys.executable}
    with ExitStack() as stack:
        children, failed = start_all(peers, Order(str(tmp_path), "float32", 1, 64), interpreters, stack)
    assert not children
    assert "No module named 'openvino'" in failed["openvino"]
    assert "No module named 'torch'" in failed["transformers"]


@pytest.mark.nightly
def test_the_whole_of_it_with_what_is_always_there(tmp_path: Path):
    output = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.vs_peers", "--models=demo", "--repeats=1", "--tries=1", "--tokens=16"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, f"--output={output}"], cwd=ROOT, env=environment, check=True, timeout=600)
    model = json.loads(output.read_text())["models"]["demo"]
    assert model["skipped"]["vllm"] == "--vllm-python was not given"
    assert model["batch"].keys() == model["mixed"].keys() == {"engine", "server"}
    assert model["agreement_with_engine"] == {"server": {"same_outputs": 1, "same_tokens": 1.0}}
    assert all(figure > 0 for peer in model["mixed"].values() for name, figure in peer.items() if name.endswith("_ms"))
