"""Each command, from its words to what it prints, on a model of random weights."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from sarathi_jax.cli.main import main

# The tokenizer's ids are the places of the byte alphabet's characters in order.
TOKEN_OF_A = sorted(pre_tokenizers.ByteLevel.alphabet()).index("a")
Captured = pytest.CaptureFixture[str]


def run(capsys: Captured, *words: str) -> tuple[str, str]:
    """Run a command that has to succeed. Returns: what it printed, on standard output and standard error."""
    capsys.readouterr()
    assert main(words) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_generate_prints_a_json_object_a_prompt(capsys: Captured, tiny_options: list[str]) -> None:
    prompts = ["--prompt", "one", "--prompt", "three"]
    out, _ = run(capsys, "generate", *tiny_options, *prompts, "--json", "--max-tokens", "5", "--ignore-eos")
    outputs = [json.loads(line) for line in out.splitlines()]
    assert [output["prompt"] for output in outputs] == ["one", "three"]
    assert [len(output["outputs"][0]["token_ids"]) for output in outputs] == [5, 5]
    assert len(outputs[1]["prompt_token_ids"]) == len("three")


def test_generate_streams_the_text_of_the_whole(
    capsys: Captured, tiny_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*tiny_options, "--temperature", "0", "--max-tokens", "5"]
    whole, _ = run(capsys, "generate", *options, "--prompt", "one")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    streamed, said = run(capsys, "generate", *options, "--stream", "--stats")
    assert streamed == whole
    assert said.splitlines()[1].startswith("steps     ")
    assert "3 prefill + " in said
    assert "; 0 after ready" in said


def test_chat_answers_piped_lines(capsys: Captured, tiny_options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n/reset\none\n/exit\n"))
    out, _ = run(capsys, "chat", *tiny_options, "--max-tokens", "3", "--logit-bias", f"{TOKEN_OF_A}=1000")
    assert out == "aaa\naaa\n"


def test_bench_latency_repeats_the_same_work(capsys: Captured, tiny_options: list[str]) -> None:
    lengths = ["--prompt-tokens", "20", "--output-tokens", "3"]
    out, _ = run(capsys, "bench", "latency", *tiny_options, *lengths, "--repeats", "2", "--json")
    report = json.loads(out)
    assert report["steps"]["num_prefill_tokens"] == 2 * 20
    assert report["steps"]["num_decode_tokens"] == 2 * 2
    assert report["batch_s"]["min"] <= report["batch_s"]["median"] <= report["batch_s"]["max"]
    assert report["compiles"]["num_after_ready"] == 0


def test_bench_throughput_runs_a_trace_and_draws_it(capsys: Captured, tiny_options: list[str], tmp_path: Path) -> None:
    trace, picture = tmp_path / "trace.csv", tmp_path / "steps.png"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,20,3\n0.01,5,4\n")
    out, _ = run(capsys, "bench", "throughput", *tiny_options, "--trace", str(trace), "--json", "--plot", str(picture))
    report: dict[str, Any] = json.loads(out)
    assert (report["num_requests"], report["num_prompt_tokens"], report["num_output_tokens"]) == (2, 25, 7)
    assert report["output_tokens_per_s"] == pytest.approx(7 / report["duration_s"])
    assert set(report["latencies"]["tbt_s"]) == {"p50", "p90", "p99"}
    assert picture.stat().st_size > 1000


def test_convert_writes_a_model_that_answers_the_same(capsys: Captured, tmp_path: Path) -> None:
    out, _ = run(capsys, "convert", "demo", str(tmp_path / "demo"), "--json")
    report = json.loads(out)
    assert (report["folder"], report["num_bytes"]) == (str(tmp_path / "demo"), 4 * report["num_parameters"])
    small = ["--max-num-seqs", "1", "--token-budget", "32"]
    out, _ = run(capsys, "generate", str(tmp_path / "demo"), "--prompt", "12+30=", "--temperature", "0", *small)
    assert out == "42\n"
    assert main(["convert", "demo", str(tmp_path / "demo")]) == 2
    assert "must not be there yet" in capsys.readouterr().err


def test_make_demos_answer_is_right(capsys: Captured) -> None:
    makefile = (Path(__file__).parent.parent.parent / "Makefile").read_text()
    prompt = re.findall(r"^DEMO_PROMPT \?= (.*)$", makefile, re.MULTILINE)[0]
    options = ["--chat", "--stream", "--temperature", "0", "--max-tokens", "64"]
    out, _ = run(
        capsys, "generate", "demo", *options, "--max-num-seqs", "1", "--token-budget", "32", "--prompt", prompt
    )
    assert out == "So that a long prompt never makes the running answers wait.\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["generate", "nowhere", "--prompt", "a"], "a model must be 'demo', a folder or a hub id"),
        (["generate", "--prompt", ""], "prompt"),
        (["bench", "latency", "--prompt-tokens", "500"], "128"),
    ],
)
def test_a_fault_found_late_is_one_line_too(
    words: list[str], text: str, capsys: Captured, tiny_options: list[str]
) -> None:
    options = tiny_options if "nowhere" not in words else []
    assert main([*words, *options]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
