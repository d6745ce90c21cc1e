"""`simulate run` and `capacity` on loads so simple that what comes of them is counted by hand, from the prices of single steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.checkpoints.builtin_models import BUILTIN_MODELS
from sarathi_jax.cli.main import main
from sarathi_jax.lab.cost_inputs import model_shape
from sarathi_jax.simulation.cost_model import CostModel, StepCost
from sarathi_jax.simulation.hardware import load_device, load_host, load_system
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.placement import Placement
from sarathi_jax.simulation.step_work import decode_work, prefill_work

type Ask = Callable[..., dict[str, Any]]
WORDS = ("mistral-7b", "--max-model-len", "1024", "--json")


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """(command, words) -> what it says of mistral-7b on an A100."""

    def ask(command: str, *words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["simulate", command, *WORDS, *words]) == 0
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """(arrival, prompt, output) of each request -> the words for a trace of them."""

    def trace(*rows: tuple[float, int, int]) -> tuple[str, str]:
        path = tmp_path / "trace.csv"
        lines = [",".join(map(str, row)) for row in rows]
        path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
        return "--trace", str(path)

    return trace


@pytest.fixture(scope="module")
def price() -> Callable[..., StepCost]:
    model = CostModel(
        model_shape(BUILTIN_MODELS["mistral-7b"], 2, "bfloat16"),
        load_device("a100-80g"),
        Placement(num_hosts=1, gpus_per_host=1),
        Links(load_system("pairwise-a100")),
        load_host("sarathi-jax"),
    )
    return model.step


def test_a_request_alone_takes_the_prices_of_its_steps(
    ask: Ask, trace: Callable[..., tuple[str, str]], price: Callable[..., StepCost]
) -> None:
    """100 tokens in one step, then decodes that attend to 101 and 102 tokens; host code runs before each of them. Nobody waits."""
    report = ask("run", *trace((0.0, 100, 3)), "--no-overlap")
    steps = [price(prefill_work(100)), price(decode_work(1, 101)), price(decode_work(1, 102))]
    first_s, *gaps_s = [step.stages[0].seconds + step.host_s for step in steps]
    latencies, e2e_s = report["latencies"], first_s + sum(gaps_s)
    assert latencies["scheduling_delay_s"] == {"p50": 0.0, "p90": 0.0, "p99": 0.0}
    assert latencies["ttft_s"]["p99"] == pytest.approx(first_s, rel=1e-9)
    assert latencies["tbt_s"]["p50"] == pytest.approx(sum(gaps_s) / 2, rel=1e-9)
    assert latencies["e2e_s"]["p50"] == pytest.approx(e2e_s, rel=1e-9)
    assert report["output_tokens_per_s"] == pytest.approx(3 / e2e_s, rel=1e-9)
    assert report["total_tokens_per_s"] == pytest.approx(103 / e2e_s, rel=1e-9)
    assert report["backlog_drift"] is None  # nothing arrives after the first


@pytest.mark.parametrize(("policy", "num_stalls"), [("sarathi", 0), ("vllm", 1), ("orca", 0)])
def test_f10_a_prompt_on_its_own_leaves_the_running_decode_out_of_one_step(
    ask: Ask, trace: Callable[..., tuple[str, str]], policy: str, num_stalls: int
) -> None:
    """The second prompt comes while the first request decodes, and fits into one step."""
    report = ask("run", *trace((0.0, 100, 50), (0.1, 100, 2)), "--policy", policy)
    assert report["num_stalls"] == num_stalls
    assert report["steps"]["num_hybrid"] == 1 - num_stalls
    assert report["backlog_drift"] == pytest.approx(report["duration_s"] / 0.1, rel=1e-9)


def test_f17_capacity_of_equal_prompts_that_come_evenly(ask: Ask, price: Callable[..., StepCost]) -> None:
    """Prompts as large as a step, of one output token: nobody has a gap, and the delay alone decides. The k-th of evenly spaced requests waits
    k (p - 1/r), p from one step to the next; of 401 the median one is the 200th, which has waited 2 s at the rate 1 / (p - 2 s / 200)."""
    step = price(prefill_work(512))
    period_s = step.stages[0].seconds + step.host_s
    wanted = 1 / (period_s - 2.0 / 200)
    lengths = (
        "--num-requests 401 --lengths fixed --prompt-tokens 512 --output-tokens 1 --arrivals uniform --tbt-slo-ms 100"
    )
    (cell,) = ask("capacity", *lengths.split(), "--no-overlap", "--processes", "1")["cells"]
    assert wanted / 1.025 <= cell["requests_per_s"] <= wanted
    assert (cell["num_unfinished"], cell["p99_tbt_s"]) == (0, 0.0)
    # 401 periods over the 400 gaps in which they arrive; P99 of evenly growing waits, and the step itself.
    gap_s = 1 / cell["requests_per_s"]
    assert cell["backlog_drift"] == pytest.approx(401 * period_s / (400 * gap_s), rel=1e-6)
    assert cell["p99_ttft_s"] == pytest.approx(0.99 * 400 * (period_s - gap_s) + period_s, rel=1e-6)


def test_several_processes_find_what_one_does(ask: Ask) -> None:
    words = ["--lengths", "fixed", "--num-requests", "8", "--max-num-seqs", "1", "--tbt-slo-ms", "50,100"]
    assert ask("capacity", *words, "--processes", "2") == ask("capacity", *words, "--processes", "1")


def test_the_slos_share_is_of_all_gaps(
    ask: Ask, trace: Callable[..., tuple[str, str]], price: Callable[..., StepCost]
) -> None:
    """Of 49 and 1 gaps one is in the step that the second prompt lengthens: a step of 201 tokens, where decodes take 10 ms."""
    decode_s, chunk_s = price(decode_work(2, 200)).stages[0].seconds, price(prefill_work(200)).stages[0].seconds
    slo_ms = 1e3 * (decode_s + chunk_s) / 2
    report = ask("run", *trace((0.0, 100, 50), (0.1, 200, 2)), "--tbt-slo-ms", str(slo_ms))
    assert report["tbt_slo"] == {"slo_s": pytest.approx(slo_ms / 1e3), "share_kept": pytest.approx(49 / 50)}


def test_slo_reads_a_prompt_in_steps_that_keep_its_goal(ask: Ask, trace: Callable[..., tuple[str, str]]) -> None:
    """Beside a decode: 900 tokens at once take 60 ms and more, and with 30 ms between tokens they have to be split; with a second they need not be."""
    load = trace((0.0, 1, 60), (0.1, 900, 2))
    strict, loose = (
        ask("run", *load, "--policy", "slo", "--token-budget", "2048", "--tbt-slo-ms", goal) for goal in ("30", "1000")
    )
    assert strict["steps"]["num_hybrid"] > loose["steps"]["num_hybrid"] == 1
    assert strict["tbt_slo"]["share_kept"] == 1.0


def test_one_request_alone_has_no_drift_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """It arrives in no time at all, and JSON has no infinity; nor has the table a number."""
    words = ["simulate", "capacity", *WORDS[:-1], "--lengths", "fixed"]
    words += ["--num-requests", "1", "--processes", "1", "--tbt-slo-ms", "5,100"]
    assert main([*words, "--json"]) == 0
    assert "Infinity" not in capsys.readouterr().out
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("run", "--tbt-slo-ms", "nan"),
            "--tbt-slo-ms must be above 0, got nan: it is a time in milliseconds. Use 100.",
        ),
        (("capacity", "--granularity", "0"), "--granularity must be above 0 and at most 1, got 0.0: it is a share."),
    ],
)
def test_goals_that_mean_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert main(["simulate", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")
