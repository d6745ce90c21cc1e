"""Sarathi-Serve's evaluation in the simulator: its setup as the paper has it, its statements on small runs, and checks that can fail."""

from dataclasses import replace

import pytest

from sarathi_jax.lab.paper_grid import Grid, Row, Task, check_table, grid_table, grid_tasks, run_grid, search
from sarathi_jax.lab.paper_inputs import LayoutRow, LengthRow, input_checks, layout_rows, length_rows
from sarathi_jax.lab.paper_runs import (
    ablation_checks,
    ablation_rows,
    bubble_checks,
    bubble_rows,
    stall_checks,
    stall_rows,
)
from sarathi_jax.lab.paper_setup import (
    POLICIES,
    SLOS,
    cost_model,
    deploy,
    load,
    models,
    paper_budget,
    shape_of,
    tbt_slo_s,
)
from sarathi_jax.lab.paper_steps import chunk_rows, chunks, interference_rows, step_checks
from sarathi_jax.simulation.capacity import Criterion, run_trial
from sarathi_jax.simulation.lengths import FITTED
from sarathi_jax.simulation.processes import num_cores
from sarathi_jax.simulation.step_work import decode_work

BASELINES = {"orca": 0.25, "vllm": 0.3, "sarathi": 1.2}


def rows(capacities: dict[str, float]) -> list[Row]:
    """The same in every cell."""
    more = {"vllm batch 32": 0.31, "vllm batch 64": 0.3, "sarathi relaxed budget": 0.1, "sarathi strict budget": 1.1}
    labels = capacities | more
    return [
        Row(model, lengths, slo, label, rate, None, 5)
        for model in models()
        for lengths in FITTED
        for slo in SLOS
        for label, rate in labels.items()
    ]


def test_the_setup_is_the_paper_s() -> None:
    """Tables 1 and 3, section 5.1."""
    assert models() == ("mistral-7b", "yi-34b", "llama2-70b", "falcon-180b")
    assert [[tbt_slo_s(model, slo) for slo in SLOS] for model in models()] == [[0.1, 0.5], [0.2, 1], [1, 5], [1, 5]]
    assert [[paper_budget(model, slo) for slo in SLOS] for model in models()] == [
        [512, 2048], [512, 2048], [512, 1536], [512, 2048]
    ]  # fmt: skip
    assert [cost_model(model).placement.describe() for model in models()] == [
        "tensor=1", "tensor=2", "stage=2,tensor=4", "stage=2,tensor=4"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "wanted_s"), [("mistral-7b", 0.027), ("yi-34b", 0.052), ("llama2-70b", 0.154), ("falcon-180b", 0.089)]
)
def test_f18_a_decode_iteration_is_what_others_price_it_at(model: str, wanted_s: float) -> None:
    """32 decodes at 4k tokens, of which the paper's SLOs are 5 and 25 times: within 6 % of what others' simulation gives from the same published profiles and host code, to whole
    milliseconds. The paper's own are 20, 40, 200 and 200 ms."""
    assert cost_model(model).step(decode_work(32, 4096)).latency_s == pytest.approx(wanted_s, rel=0.06)


def test_there_are_sixteen_cells_for_three_schedulers() -> None:
    tasks = grid_tasks(8)
    cells = {(task.model, task.lengths, task.slo, task.label) for task in tasks}
    assert len(cells) == len(tasks) == 16 * 3 + 2 * (2 + 2) + 2
    assert {(*cell, policy) for cell in Grid(rows(BASELINES)).cells() for policy in POLICIES} <= cells
    assert {task.model for task in grid_tasks(8, ["yi-34b"])} == {"yi-34b"}


def test_orca_has_its_small_batch_and_vllm_a_budget_for_whole_prompts() -> None:
    orca, vllm = (deploy("falcon-180b", "arxiv", policy) for policy in ("orca", "vllm"))
    assert (orca.max_num_seqs, orca.watermark, orca.token_budget) == (8, 0.0, 8 * 16385)
    assert (vllm.max_num_seqs, vllm.watermark, vllm.token_budget) == (128, 0.01, 16384)


def test_f19_sarathi_holds_a_rate_at_which_vllm_and_orca_do_not() -> None:
    """Yi-34B at the strict SLO and 0.8 requests a second: the paper has about 1.2 for sarathi, and 0.3 for both others (figure 10)."""
    shapes, criterion = load("sharegpt", 160), Criterion(tbt_slo_s=0.2)
    trials = {
        policy: run_trial(
            deploy("yi-34b", "sharegpt", policy, 512 if policy == "sarathi" else None), shapes, 0.8, criterion
        )
        for policy in POLICIES
    }
    assert {policy: trial.does_hold for policy, trial in trials.items()} == {
        "orca": False,
        "vllm": False,
        "sarathi": True,
    }
    assert min(trials[policy].p99_tbt_s for policy in ("orca", "vllm")) > 0.2


def test_a_search_says_what_it_found() -> None:
    task = Task("yi-34b", "sharegpt", "strict", "sarathi", "sarathi", 24, shape_of("yi-34b"), {"token_budget": 512})
    row = search(task)
    assert (row.model, row.lengths, row.slo, row.label) == ("yi-34b", "sharegpt", "strict", "sarathi")
    assert row.at is not None and row.at.does_hold and row.at.requests_per_s == row.requests_per_s > 0


def test_searches_of_one_engine_share_trials_and_find_what_each_finds_alone() -> None:
    tasks = [task for task in grid_tasks(8, ["yi-34b"]) if (task.lengths, task.label) == ("sharegpt", "orca")]
    assert [task.slo for task in tasks] == ["strict", "relaxed"]
    assert list(run_grid(tasks, num_processes=1).rows) == [search(task) for task in tasks]


@pytest.mark.nightly
def test_f19_f20_f21_the_paper_s_statements_about_capacity_without_pipelines() -> None:
    """Eight cells, three schedulers, and what figure 12 has beside them: minutes. `simulate paper` has eight times the requests, and the pipelines."""
    grid = run_grid(grid_tasks(256, ["mistral-7b", "yi-34b"]), num_processes=num_cores())
    assert len(grid.cells()) == 8
    assert all(check.is_met for check in grid.checks()), check_table(grid.checks())


def test_checks_of_a_grid_fail_where_the_paper_s_statements_do() -> None:
    """All ratios are 1.2 / 0.3 = 4 and 1.2 / 0.25 = 4.8: within 15 % of Yi's 3.7, not of Mistral's 2.6 or Yi's relaxed 1.65, and 20 % above Yi's 4.0."""
    claims = {check.name: check.is_met for check in Grid(rows(BASELINES)).checks()}
    of_text = [is_met for name, is_met in claims.items() if name.startswith("F19") and "(" in name]
    assert of_text == [False, False, True, False, True, True, True, True]
    assert claims["F19 cells in which sarathi is at or above both baselines"]
    assert claims["F20 yi-34b: vllm at the strict SLO with batches of 32, 64, 128"]
    assert claims["F21 yi-34b: the large budget at the strict SLO, of what the small one serves"]
    worse = [replace(row, requests_per_s=0.2) if row.label == "sarathi" else row for row in rows(BASELINES)]
    failed = {check.name for check in Grid(worse).checks() if not check.is_met}
    assert "F19 cells in which sarathi is at or above both baselines" in failed
    assert "F22 falcon-180b sharegpt strict: sarathi over vllm" in failed
    assert "F21 yi-34b: the large budget at the relaxed SLO, of what the small one serves" in failed


def test_a_grid_of_one_model_is_told_of_that_model() -> None:
    grid = Grid([row for row in rows(BASELINES) if row.model == "yi-34b"])
    assert len(grid_table(grid).splitlines()) == 1 + 4
    assert all("yi-34b" in check.name or "cells" in check.name for check in grid.checks())
    assert check_table(grid.checks()).count("\n") == len(grid.checks()) - 1


def test_f14_f15_chunks_are_cut_from_the_front_and_read_what_was_before_them() -> None:
    """10 tokens by 4: the first 4 are read three times, the next 4 twice, the last 2 once: 4 + 8 + 10 keys."""
    parts = list(chunks(10, 4))
    assert parts == [(0, 4), (4, 4), (8, 2)]
    assert sum(part.num_keys(None) for part in parts) == 22


def test_f9_f11_f14_f15_the_paper_s_statements_about_steps() -> None:
    checks = step_checks(chunk_rows(), interference_rows())
    assert [check.name.split()[0] for check in checks] == ["F14", "F14", "F11", "F11", "F15", "F9"]
    assert all(check.is_met for check in checks), check_table(checks)


def test_f14_overheads_of_chunks_of_512_are_near_the_measured_ones() -> None:
    """Within a tenth of the prompt's time. Chunks of 1,024 were measured to be no better than 512, which no model of tiles explains."""
    for row in chunk_rows():
        if row.num_chunk_tokens != 1024:
            assert abs(row.overhead - row.measured_overhead) <= 0.1


def test_f16_the_ablation_s_order() -> None:
    ablation = ablation_rows()
    checks = ablation_checks(ablation)
    assert len(checks) == 4 and all(check.is_met for check in checks), check_table(checks)
    swapped = [replace(row, median_ttft_s=-row.median_ttft_s, p99_tbt_s=1.0) for row in ablation]
    assert not any(check.is_met for check in ablation_checks(swapped))


def test_f10_prompts_stall_decodes_under_vllm_and_not_under_sarathi() -> None:
    stalls = stall_rows()
    checks = stall_checks(stalls)
    assert all(check.is_met for check in checks), check_table(checks)
    assert not any(check.is_met for check in stall_checks([replace(row, policy=other) for row, other in zip(stalls, ("vllm", "sarathi", "orca"), strict=True)]))  # fmt: skip


def test_f22_f23_a_request_s_bubbles_are_much_longer_under_orca_with_the_same_batch() -> None:
    """With Orca's own batch of 8 they are not: see docs/paper.md."""
    found = bubble_rows(200)
    assert [(row.policy, row.max_num_seqs) for row in found] == [
        ("orca", 8),
        ("orca", 128),
        ("vllm", 128),
        ("sarathi", 128),
    ]
    checks = bubble_checks(found)
    assert [check.name.split()[0] for check in checks] == ["F22", "F23"]
    assert all(check.is_met for check in checks), check_table(checks)
    assert max(found, key=lambda row: row.busy_share).policy == "sarathi"
    assert not bubble_checks([replace(row, median_bubble_s=1.0) for row in found])[0].is_met


def test_f28_f24_lengths_and_layouts_are_the_paper_s() -> None:
    """Figure 13a, read off to 10 %: 0.19 s over eight GPUs at a batch of 8, which is what the network's latency was set by."""
    lengths, layouts = length_rows(), layout_rows()
    assert all(check.is_met for check in input_checks(lengths, layouts))
    assert [row.batch for row in layouts] == [8, 32, 128]
    assert 0.17 <= layouts[0].tensor_s <= 0.21
    assert layouts[0].tensor_s < layouts[2].tensor_s


def test_f28_f24_checks_can_fail() -> None:
    wrong = LengthRow("sharegpt", "prompt", (1730.0, 5696.0, 1900.0), (1730, 5696, 2088))
    assert wrong.error == pytest.approx(188 / 2088)
    checks = input_checks([wrong], [LayoutRow(8, 0.2, 0.05), LayoutRow(32, 0.2, 0.11)])
    assert [check.is_met for check in checks] == [False, False]
    assert checks[1].got == "4.00, 1.82"
