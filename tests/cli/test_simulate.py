"""`simulate run` and `simulate capacity`, from their words to what they print and draw."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.cli.main import main
from sarathi_jax.lab.paper_setup import shape_of
from sarathi_jax.simulation.cost_model import CostModel
from sarathi_jax.simulation.hardware import load_device, load_host, load_system
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.placement import Placement
from sarathi_jax.simulation.step_work import StepWork, decode_work, prefill_work

Captured = pytest.CaptureFixture[str]
RUN = ("simulate", "run", "mistral-7b")
CAPACITY = ("simulate", "capacity", "mistral-7b", "--processes", "1", "--max-model-len", "1024")
SHORT = ("--lengths", "uniform", "--prompt-tokens", "900", "--output-tokens", "20", "--num-requests", "12")


def said(capsys: Captured, *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out


def error_of(capsys: Captured, *words: str) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


def mistral_on_one_gpu(host: str) -> CostModel:
    return CostModel(
        shape_of("mistral-7b"),
        load_device("a100-80g"),
        Placement(num_hosts=1, gpus_per_host=1),
        Links(load_system("pairwise-a100")),
        load_host(host),
    )


def test_one_request_takes_what_the_cost_model_says(capsys: Captured) -> None:
    """600 tokens in chunks of 512 and 88, then one decode of 601; with the original engine's host code before each of the three."""
    words = "--lengths fixed --prompt-tokens 600 --output-tokens 2 --num-requests 1 --host sarathi-serve --no-overlap --json"
    report = json.loads(said(capsys, *RUN, *words.split()))
    model = mistral_on_one_gpu("sarathi-serve")

    def seconds(work: StepWork) -> float:
        return model.host.seconds(1) + sum(model.stages_s(work))

    first_s = seconds(prefill_work(512)) + seconds(prefill_work(88, 512))
    assert report["latencies"]["ttft_s"]["p50"] == pytest.approx(first_s)
    assert report["latencies"]["tbt_s"]["p99"] == pytest.approx(seconds(decode_work(1, 601)))
    assert report["duration_s"] == pytest.approx(first_s + seconds(decode_work(1, 601)))
    assert (report["num_prompt_tokens"], report["num_output_tokens"], report["steps"]["num_steps"]) == (600, 2, 3)


@pytest.mark.parametrize(("policy", "budget", "has_stalls"), [("sarathi", 512, False), ("vllm", 1024, True)])
def test_a_run_tells_of_stalls_by_policy(capsys: Captured, policy: str, budget: int, has_stalls: bool) -> None:
    words = ("--policy", policy, "--max-model-len", "1024", "--request-rate", "20", *SHORT)
    report = json.loads(said(capsys, *RUN, *words, "--json"))
    assert (report["policy"], report["token_budget"]) == (policy, budget)
    assert (report["num_stalls"] > 0) == has_stalls
    assert report["num_unfinished"] == 0


def test_slo_keeps_the_goal_it_is_told(capsys: Captured) -> None:
    """With steps of up to 2,048 tokens: prompts are read in smaller ones where somebody decodes, and the goal decides how much smaller."""
    words = (
        "--policy",
        "slo",
        "--token-budget",
        "2048",
        "--lengths",
        "sharegpt",
        "--num-requests",
        "60",
        "--request-rate",
        "3",
    )
    p99_s = {
        goal_ms: json.loads(said(capsys, *RUN, *words, "--tbt-slo-ms", str(goal_ms), "--json"))["latencies"]["tbt_s"][
            "p99"
        ]
        for goal_ms in (60, 150)
    }
    assert p99_s[60] <= 0.06 < p99_s[150] <= 0.15


def test_capacity_tells_slo_each_goal(capsys: Captured) -> None:
    words = ("--policy", "slo", "--token-budget", "1024", "--tbt-slo-ms", "30,60", *SHORT)
    cells = json.loads(said(capsys, *CAPACITY, *words, "--json"))["cells"]
    assert [(cell["policy"], cell["tbt_slo_s"]) for cell in cells] == [("slo", 0.03), ("slo", 0.06)]
    assert all(cell["p99_tbt_s"] <= cell["tbt_slo_s"] for cell in cells)


def test_a_pipeline_tells_where_its_stages_are_idle(capsys: Captured) -> None:
    words = ("--mesh", "stage=2", *SHORT, "--request-rate", "20")
    lock_step, series = (
        json.loads(said(capsys, *RUN, *words, "--pipeline", each, "--json")) for each in ("lock-step", "series")
    )
    for report in (lock_step, series):
        stages = report["stages"]
        idle_s = sum(value for name, value in stages.items() if name.endswith("_s") and name != "busy_s")
        assert stages["idle_share"] == pytest.approx(idle_s / (idle_s + stages["busy_s"]))
        assert 0 < stages["idle_share"] < 1
    assert series["duration_s"] < lock_step["duration_s"]
    assert "stages in lock step" in (text := said(capsys, *RUN, *words))
    assert "stages idle " in text


def test_a_run_as_text(capsys: Captured) -> None:
    lines = said(capsys, *RUN, *SHORT).splitlines()
    assert lines[0] == "mistral-7b on 1 x 1 a100-80g (pairwise-a100), mesh tensor=1"
    assert "12 requests in " in lines[4]
    assert [line.split()[0] for line in lines[6:10]] == ["ttft", "tbt", "scheduling_delay", "e2e"]
    assert lines[10].startswith("drift -, 0 unfinished, 0 preemptions, 0 stalls")


def test_chats_find_their_pages_unless_told_not_to(capsys: Captured) -> None:
    words = [
        "--lengths",
        "chats",
        "--mean-rounds",
        "4",
        "--num-requests",
        "20",
        "--request-rate",
        "5",
        "--max-total-tokens",
        "2000",
        "--json",
    ]
    assert json.loads(said(capsys, *RUN, *words))["num_prefix_hit_tokens"] > 0
    assert json.loads(said(capsys, *RUN, *words, "--no-prefix-caching"))["num_prefix_hit_tokens"] == 0


def test_capacity_searches_every_combination_once(capsys: Captured) -> None:
    """vllm takes no smaller step than the longest request, and so has one budget only."""
    words = ("--policy", "sarathi,vllm", "--token-budget", "256,512", "--tbt-slo-ms", "40,400", *SHORT)
    report = json.loads(said(capsys, *CAPACITY, *words, "--json"))
    cells: dict[Any, Any] = {
        (each["policy"], each["token_budget"], each["tbt_slo_s"]): each for each in report["cells"]
    }
    assert sorted(cells) == sorted(
        [
            (policy, budget, slo_s)
            for policy, budget in (("sarathi", 256), ("sarathi", 512), ("vllm", 1024))
            for slo_s in (0.04, 0.4)
        ]
    )
    for cell in report["cells"]:
        assert cell["p99_tbt_s"] is None or cell["p99_tbt_s"] <= cell["tbt_slo_s"]
        assert cell["requests_per_s"] is None or cell["requests_per_s"] == max(
            [each["requests_per_s"] for each in cell["trials"] if each["does_hold"]], default=0.0
        )
    assert (cells["sarathi", 256, 0.04]["requests_per_s"] or math.inf) > cells["vllm", 1024, 0.04]["requests_per_s"]


def test_capacity_stands_beside_what_the_criterion_does_not_say(capsys: Captured) -> None:
    """An SLO that nothing holds, one that decides, and one with which so few requests may come all at once."""
    lines = said(capsys, *CAPACITY, *SHORT, "--tbt-slo-ms", "0.1,30,60").splitlines()
    assert lines[3].split() == ["capacity", "P99", "TBT", "delay", "TTFT", "P50", "P99", "drift", "unfinished"]
    assert lines[5].split()[:4] == ["sarathi", "512", "0", "none"]
    assert "no rate holds the SLO" in lines[5]
    assert len(lines[6].split()) == 10
    assert lines[6].split()[:3] == ["sarathi", "512", "30"]
    assert lines[7].split()[:4] == ["sarathi", "512", "60", "any"]


def test_capacity_says_when_there_are_too_few_requests(capsys: Captured) -> None:
    words = [
        "--lengths",
        "fixed",
        "--prompt-tokens",
        "1000",
        "--output-tokens",
        "2",
        "--num-requests",
        "30",
        "--tbt-slo-ms",
        "1000",
    ]
    assert "Use more requests" in said(capsys, *CAPACITY, *words, "--max-median-delay-s", "0.5").splitlines()[-1]


def test_without_slos_capacity_takes_the_strict_and_the_relaxed_one(capsys: Captured) -> None:
    """F18: 5 and 25 times a step of 32 decodes at 4k tokens each."""
    decode_s = mistral_on_one_gpu("sarathi-jax").step(decode_work(32, 4096)).latency_s
    report = json.loads(said(capsys, *CAPACITY, *SHORT, "--json"))
    assert [each["tbt_slo_s"] for each in report["cells"]] == pytest.approx([5 * decode_s, 25 * decode_s])


def test_pictures_are_drawn(capsys: Captured, tmp_path: Path) -> None:
    said(capsys, *RUN, *SHORT, "--plot", str(tmp_path / "run.png"))
    said(
        capsys,
        *CAPACITY,
        *SHORT,
        "--tbt-slo-ms",
        "60",
        "--policy",
        "sarathi,orca",
        "--plot",
        str(tmp_path / "capacity.png"),
    )
    for name in ("run.png", "capacity.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((*RUN, "--policy", "nobody"), "policy='nobody' is unknown. Choose one of: alternating"),
        ((*RUN, "--mesh", "data=2"), "mesh must be of one engine, got data=2: leave `data` out"),
        ((*RUN, "--mesh", "stage=3"), "must divide mistral-7b, got: 32 layers do not divide into stage=3"),
        ((*RUN, "--topology", "2by4"), "--topology must be HOSTSxGPUS, got '2by4'"),
        (("simulate", "run", "falcon-180b"), "use more devices"),
        ((*CAPACITY, "--tbt-slo-ms", "fast"), "argument --tbt-slo-ms: invalid list of float value: 'fast'"),
        ((*CAPACITY, "--tbt-slo-ms", "-3", *SHORT), "must be above 0"),
        ((*CAPACITY, "--processes", "0", *SHORT), "processes must be at least 1, got 0"),
        (
            (*RUN, "--lengths", "fixed", "--prompt-tokens", "2000", "--max-model-len", "1024"),
            "The prompt has 2000 tokens",
        ),
    ],
)
def test_wrong_words_are_one_clear_error(capsys: Captured, words: tuple[str, ...], wanted: str) -> None:
    assert wanted in error_of(capsys, *words)
