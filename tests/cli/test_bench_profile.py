"""`bench profile`: from its words to a profile that an engine takes its budget from."""

import json
from pathlib import Path

import pytest

from sarathi_jax.cli.main import main
from sarathi_jax.config import EngineConfig
from sarathi_jax.scheduling.step_profile import read_profile
from sarathi_jax.scheduling.token_budget import with_token_budget

Captured = pytest.CaptureFixture[str]


def test_a_profile_of_the_demo_model(capsys: Captured, tmp_path: Path) -> None:
    """One request at a time and 32 tokens a step: decodes alone and other steps have one size each."""
    path = tmp_path / "profile.json"
    small = ["--max-num-seqs", "1", "--token-budget", "32"]
    words = ["bench", "profile", "demo", *small, "--repeats", "2", "--out", str(path), "--tbt-slo-ms"]
    assert main([*words, "60000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    profile = read_profile(path)
    assert (profile.model, profile.decode_sizes, profile.mixed_sizes) == ("demo", (1,), (32,))
    assert (profile.max_num_seqs, profile.max_model_len, profile.num_stages) == (1, 2048, 1)
    assert report["num_compiles_after_ready"] == 0  # F13: the sizes that it measures are those that are compiled
    assert {sample.num_repeats for sample in profile.samples} == {2} and len(profile.samples) == report["num_samples"]
    assert {sample.num_tokens for sample in profile.samples} == {1, 2, 32}
    assert max(sample.decode_context for sample in profile.samples) == 2048
    assert (report["full_load"]["num_decodes"], report["full_load"]["context"]) == (1, 2048)
    asked_for = report["budgets"][-1]
    assert (asked_for["goal"], asked_for["tbt_slo_s"], asked_for["token_budget"]) == ("asked for", 60.0, 32)
    options = EngineConfig(tbt_slo_ms=60_000, profile=str(path), max_num_seqs=1)
    assert with_token_budget(options).token_budget == 32


def test_a_goal_that_is_out_of_reach_is_told(capsys: Captured, tiny_options: list[str]) -> None:
    assert main(["bench", "profile", *tiny_options, "--repeats", "1", "--tbt-slo-ms", "0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:14].strip() for line in lines[1:]] == [
        "decodes alone",
        "other steps",
        "and",
        "fit",
        "full steps",
        "strict",
        "relaxed",
        "asked for",
    ]
    assert "0.001 ms between tokens: none. tbt_slo_ms=0.001 must be at least " in lines[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench profile --repeats 0", "--repeats must be at least 1, got 0: pass a positive number."),
        ("bench profile --tbt-slo-ms 0", "--tbt-slo-ms must be above 0, got 0.0: pass a time in milliseconds."),
        (
            "bench profile --out none/x.json",
            "--out must be in a folder that is there, got none/x.json: make none first.",
        ),
        ("bench profile --profile x", "unknown option --profile"),
        (
            "generate --tbt-slo-ms 9 --prompt a",
            "tbt_slo_ms=9.0 needs a profile of this machine, got none: run `sarathi-jax",
        ),
        (
            "generate --tbt-slo-ms 9 --profile x --token-budget 512 --prompt a",
            "tbt_slo_ms=9.0 chooses the token budget",
        ),
        ("generate --tbt-slo-ms 9 --profile none.json --prompt a", "profile none.json must be what `sarathi-jax bench"),
    ],
)
def test_words_that_are_wrong(capsys: Captured, line: str, message: str) -> None:
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err
