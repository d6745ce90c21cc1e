"""`bench stalls` on the real engine with the demo model. What is asserted are counts, which no clock can change."""

import json
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.cli.main import main

Report = dict[str, Any]
# Prompts of 96 tokens, a budget of 32. A decode has 32 tokens when the first prompt arrives, 24 more when the second does, and 24 more, 80, when it ends.
WORDS = (
    "--decodes",
    "4",
    "--prompts",
    "2",
    "--prompt-tokens",
    "96",
    "--token-budget",
    "32",
    "--repeats",
    "1",
    "--profile-repeats",
    "1",
)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stalls") / "stalls.png"


@pytest.fixture(scope="module")
def report(picture: Path) -> Report:
    """One run under every policy."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda text: lines.append(text))
        assert main(["bench", "stalls", "demo", *WORDS, "--json", "--plot", str(picture)]) == 0
    return json.loads("\n".join(lines))


def test_f10_sarathi_leaves_no_decode_out_of_any_step(report: Report) -> None:
    """And reads a prompt in 28, 28, 28 and 12 tokens beside 4 decodes, so that nobody's next token comes behind more than a budget's tokens."""
    found = report["policies"]["sarathi"]
    assert (found["num_stalls"], found["decode_stalls"]) == (0, [0, 0, 0, 0])
    assert (found["steps_read"], found["steps_waited"]) == ([4, 4], [0, 0])
    assert found["max_tokens_between"] == 32


def test_f10_slo_leaves_no_decode_out_of_any_step(report: Report) -> None:
    """How much of a prompt it reads beside them is a matter of time."""
    found = report["policies"]["slo"]
    assert (found["num_stalls"], found["decode_stalls"]) == (0, [0, 0, 0, 0])
    assert found["num_hybrid_steps"] >= 2 and found["tbt_slo_s"] > 0


def test_f10_vllm_stalls_every_decode_for_every_prompt(report: Report) -> None:
    """Behind a whole prompt and a step of 4 decodes and the prompt's own."""
    found = report["policies"]["vllm"]
    assert (found["num_stalls"], found["decode_stalls"]) == (8, [2, 2, 2, 2])
    assert (found["steps_read"], found["num_hybrid_steps"]) == ([1, 1], 0)
    assert found["max_tokens_between"] == 96 + 5


def test_f11_orca_leaves_nobody_out_and_holds_all_up_for_a_whole_prompt(report: Report) -> None:
    found = report["policies"]["orca"]
    assert (found["num_stalls"], found["steps_read"], found["num_hybrid_steps"]) == (0, [1, 1], 2)
    assert found["max_tokens_between"] == 96 + 4


def test_request_level_makes_prompts_wait_for_the_whole_batch(report: Report) -> None:
    """Both arrive when 33 and 57 of the decodes' 80 steps have been dispatched. Then the second prompt is read after the first: one stall, of their own batch."""
    found = report["policies"]["request_level"]
    assert (found["decode_stalls"], found["prompt_stalls"]) == ([0, 0, 0, 0], [1, 0])
    assert found["steps_waited"] == [80 - 33, 80 - 57 + 1]
    assert found["max_tokens_between"] == 4


def test_alternating_stalls_for_a_chunk_at_a_time(report: Report) -> None:
    """3 chunks a prompt, each of which leaves out all 4 decodes."""
    found = report["policies"]["alternating"]
    assert (found["num_stalls"], found["decode_stalls"]) == (24, [6, 6, 6, 6])
    assert found["steps_read"] == [3, 3]
    assert found["max_tokens_between"] <= 32 + 5


def test_every_step_of_every_run_was_predicted(report: Report) -> None:
    times, policies = report["step_times"], report["policies"]
    num_steps = {name: each["num_steps"] for name, each in policies.items()}
    assert {name: each["num_steps"] for name, each in times["policies"].items()} == num_steps
    assert times["all"]["num_steps"] == sum(num_steps.values())
    assert min(each["median_error"] for each in times["policies"].values()) > 0


def test_the_report_says_where_it_was_measured_and_the_picture_is_drawn(report: Report, picture: Path) -> None:
    assert report["versions"].keys() == {"sarathi_jax", "python", "jax", "jaxlib", "flax", "numpy"}
    assert report["machine"]["device"] == "cpu"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--policies", "sarathi,fifo"], "policy='fifo' is unknown. Choose one of:"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0: pass a larger number"),
        (["--profile-repeats", "-1"], "--profile-repeats must be at least 0, got -1: pass a larger number"),
        (["--tbt-slo-ms", "0"], "--tbt-slo-ms must be above 0, got 0.0: pass a time in milliseconds"),
        (
            ["--profile-repeats", "0"],
            "policy slo needs a goal, got none and no profile to take it from: pass --tbt-slo-ms",
        ),
        (["--prompts", "0"], "num_prompts must be at least 1, got 0"),
        (["--max-model-len", "64"], "max_model_len=64 must hold the longest request, got one of 1508 tokens"),
        (["--prompt-tokens", "4000"], "max_model_len=4008 must be at most the model's 2048 positions"),
        (
            ["--token-budget", "200"],
            "token_budget=200 must be the size of a compiled step: choose one of 32, 128, 256, 384, 512, 768, 1024, 1536, 1544.",
        ),
        (["--mesh", "stage=2"], "policies are compared on one engine without a pipeline"),
    ],
)
def test_a_comparison_that_can_not_be_made_is_refused(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "stalls", "demo", *words]) == 2
    assert text in capsys.readouterr().err
