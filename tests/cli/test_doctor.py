"""The doctor's report, and the problems it names."""

import json

import pytest

from sarathi_jax.cli.doctor_environment import NEEDED, OPTIONAL, find_hints, find_lost_gpu, find_problems, release
from sarathi_jax.cli.main import main

HEALTHY: dict[str, str | None] = {**dict.fromkeys(NEEDED, "1.0"), **dict.fromkeys(OPTIONAL), "jax": "0.11.2"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"flax": None}, "flax is not installed: pip install sarathi-jax"),
        ({"jax": "0.11.1"}, "jax must be >= 0.11.2 and < 0.12, got 0.11.1"),
        ({"jax": "0.12.0"}, "jax must be >= 0.11.2 and < 0.12, got 0.12.0"),
        ({"jax-cuda12-plugin": "0.11.2"}, "jax has its CUDA plugin but jax-triton is not installed"),
    ],
)
def test_a_problem_is_named_with_its_remedy(changes: dict[str, str | None], text: str) -> None:
    problems = find_problems(HEALTHY | changes)
    assert len(problems) == 1
    assert text in problems[0]
    assert ": pip install " in problems[0]


def test_nothing_is_wrong_with_a_healthy_machine() -> None:
    assert find_problems(HEALTHY) == []
    assert find_problems(HEALTHY | {"jax": "0.11.3"}) == []


def test_a_hint_tells_a_gpu_that_is_not_used_and_a_plugin_without_one() -> None:
    assert "pip install 'sarathi-jax[cuda12]'" in find_hints(is_gpu_here=True, is_plugin_here=False)[0]
    assert "there is no NVIDIA driver" in find_hints(is_gpu_here=False, is_plugin_here=True)[0]
    assert (
        find_hints(is_gpu_here=True, is_plugin_here=True) == find_hints(is_gpu_here=False, is_plugin_here=False) == []
    )


def test_a_gpu_that_jax_does_not_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    cpu, gpu = {"platform": "cpu"}, {"platform": "gpu"}
    assert "but jax uses the CPU" in find_lost_gpu([cpu], is_gpu_here=True)[0]
    assert find_lost_gpu([gpu], is_gpu_here=True) == find_lost_gpu([cpu], is_gpu_here=False) == []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert find_lost_gpu([cpu], is_gpu_here=True) == []


def test_release_reads_the_numbers_alone() -> None:
    assert release("0.11.2.dev1") == (0, 11, 2)
    assert release("0.12.0rc1") == (0, 12, 0)
    assert release("unknown") == ()


def test_the_report_is_one_json_object_with_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert [device["platform"] for device in report["devices"]] == ["cpu"] * 8


def test_the_report_says_which_kernels_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["kernels"] == {
        "triton": "it needs an NVIDIA GPU, and this is cpu",
        "xla": "can run",
        "triton-interpreter": "it computes bfloat16 wrongly",
    }
