"""Percentiles, the step mix, and the timeline's picture."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sarathi_jax.cli.latency_report import latency_report, latency_table, percentiles
from sarathi_jax.cli.report import describe_run, step_mix
from sarathi_jax.cli.timeline import check_plotting, plot_timeline
from sarathi_jax.errors import ConfigError
from sarathi_jax.outputs import RequestMetrics

METRICS = RequestMetrics(
    arrival_s=1.0,
    scheduling_delay_s=0.1,
    ttft_s=0.2,
    tbt_s=[0.01] * 99,
    e2e_s=1.19,
    num_prefix_hit_tokens=0,
    num_preemptions=0,
)


def test_percentiles_interpolate_between_ranks() -> None:
    assert percentiles([4.0, 1.0, 2.0, 3.0]) == pytest.approx({"p50": 2.5, "p90": 3.7, "p99": 3.97})
    assert percentiles([]) is None


def test_tbt_pools_gaps_so_that_one_stall_is_seen() -> None:
    stalled = replace(METRICS, tbt_s=[0.01] * 98 + [2.0, 2.0, 2.0])
    found = latency_report([METRICS, stalled])["tbt_s"]
    # 3 of 200 gaps are stalls: over the requests' means they would be 0.07 s at most.
    assert found == pytest.approx({"p50": 0.01, "p90": 0.01, "p99": 2.0})


def test_requests_without_a_token_have_no_latency_to_report() -> None:
    unfinished = replace(METRICS, scheduling_delay_s=None, ttft_s=None, tbt_s=[])
    report = latency_report([unfinished])
    assert report["ttft_s"] is None
    assert report["e2e_s"] == pytest.approx({"p50": 1.19, "p90": 1.19, "p99": 1.19})
    assert latency_table(report).splitlines()[1].split() == ["ttft", "-", "-", "-"]


def test_the_step_mix_counts_each_kind_of_step() -> None:
    mix = step_mix(RECORDS)
    assert (mix.num_prefill_only, mix.num_hybrid, mix.num_decode_only) == (1, 1, 2)
    assert (mix.num_prefill_tokens, mix.num_decode_tokens, mix.num_preemptions) == (10, 5, 1)
    assert mix.duration_s == pytest.approx(2.0)
    assert mix.tokens_per_s == pytest.approx(7.5)
    assert mix.bucket_fill == pytest.approx(15 / 32)


def test_no_steps_are_no_division_by_zero() -> None:
    assert step_mix([]).tokens_per_s == 0.0
    assert "0 in 0.000 s" in describe_run([], LEDGER)


def test_a_run_is_described_with_its_compiles() -> None:
    text = describe_run(RECORDS, LEDGER)
    assert "4 in 2.000 s: 1 prefill only, 1 hybrid, 2 decode only; 1 preemptions" in text
    assert "10 prefill + 5 decode" in text
    assert "2 programs, 1 of them from the cache, 1.5 s of compiling; 3 after ready" in text


def test_the_timeline_is_written_as_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "steps.png"
    check_plotting(path)
    plot_timeline(RECORDS, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarathi_jax.cli.timeline.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"matplotlib, which isn't installed: pip install 'sarathi-jax\[bench\]'"):
        check_plotting(Path("steps.png"))


def test_a_plot_into_no_folder_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match="the plot's folder must exist, got nowhere: make it first"):
        check_plotting(Path("nowhere/steps.png"))


def record(step: int, prefill: int, decode: int, preemptions: int = 0) -> Any:
    return SimpleNamespace(
        step=step,
        start_s=10.0 + 0.5 * step,
        end_s=10.5 + 0.5 * step,
        num_decode_tokens=decode,
        num_prefill_tokens=prefill,
        num_rows=1,
        bucket=SimpleNamespace(num_tokens=8),
        num_preemptions=preemptions,
    )


RECORDS = [record(0, 7, 0), record(1, 3, 1), record(2, 0, 2), record(3, 0, 2, preemptions=1)]
LEDGER: Any = SimpleNamespace(
    entries=[SimpleNamespace(is_cache_hit=hit, seconds=seconds) for hit, seconds in [(True, 0.5), (False, 1.0)]],
    num_after_ready=3,
)
