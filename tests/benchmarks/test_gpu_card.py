"""The GPU card: its arithmetic against numbers worked out by hand, its goals, its children, and the whole of it with tiny sizes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import arithmetic, goals, order, parts, table
from benchmarks.gpu.attention_cases import FULL, MAX_SLOTS, Decodes, Mixed, Prefill
from sarathi_jax.engine.records import StepRecord
from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.models.config import ModelConfig

ROOT = Path(__file__).parents[2]
SMALL = ModelConfig(
    family="llama",
    vocab_size=100,
    hidden_size=8,
    intermediate_size=10,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    max_position_embeddings=64,
)


# ---- arithmetic ----


@pytest.mark.parametrize(
    ("chunk", "history", "pairs"), [(1, 0, 1), (3, 0, 1 + 2 + 3), (3, 10, 11 + 12 + 13), (1, 9, 10)]
)
def test_a_chunk_sees_all_before_it_and_itself_up_to_the_diagonal(chunk: int, history: int, pairs: int):
    assert arithmetic.causal_pairs(chunk, history) == pairs


def test_attention_is_four_operations_a_pair_a_head_a_number():
    assert arithmetic.attention_flops(6, num_heads=4, head_dim=2) == 6 * 4 * 2 * 4


def test_keys_and_values_are_read_once_each():
    assert arithmetic.kv_bytes(10, num_kv_heads=8, head_dim=128, itemsize=2) == 10 * 4096


def test_a_layer_counts_qkv_output_gate_up_and_down():
    qkv, out, mlp = 8 * (4 + 2 + 2) * 2, 4 * 2 * 8, 3 * 8 * 10
    assert arithmetic.layer_parameters(SMALL) == qkv + out + mlp == 432


def test_a_prefill_counts_products_attention_and_one_row_of_logits():
    products, attention, head = 3 * 2 * 5 * 432, 3 * 4 * (5 * 7 + 15) * 4 * 2, 2 * 8 * 100
    assert arithmetic.prefill_flops(SMALL, chunk=5, history=7) == products + attention + head


@pytest.mark.parametrize(("is_tied", "expected"), [(False, 7), (True, 107)])
def test_a_step_reads_the_embedding_table_only_where_it_is_the_head(is_tied: bool, expected: int):
    num_bytes = {"embedding.embedding": 100, "norm.scale": 2, "layers.0.mlp.down.kernel": 5}
    assert arithmetic.weight_bytes_read(num_bytes, is_head_tied=is_tied) == expected


def test_the_decode_floor_reads_weights_and_kv_at_the_copy_bandwidth():
    assert arithmetic.decode_floor_s(14_000, 2_000, copy_bytes_per_s=4_000.0) == 4.0


@pytest.mark.parametrize(("part_s", "other_s"), [(10.0, 4.0), (4.0, 10.0)])
def test_a_mixed_launch_may_take_the_larger_and_a_quarter_of_the_smaller(part_s: float, other_s: float):
    assert arithmetic.mixed_allowance_s(part_s, other_s) == pytest.approx(12.0)


def test_idle_is_what_the_period_has_on_top():
    assert arithmetic.idle_share(period_s=5.0, device_s=4.0) == pytest.approx(0.2)


def test_the_ceilings_are_the_best_copy_and_the_best_product():
    rows = [
        {"case": "copy", "bytes_per_s": 3.0},
        {"case": "negate", "bytes_per_s": 4.0},
        {"case": "read", "bytes_per_s": 9.0},
        {"case": "2x2x2", "flops_per_s": 7.0},
        {"case": "3x3x3", "failed": "no"},
    ]
    assert arithmetic.ceilings_of(rows) == {"copy_bytes_per_s": 4.0, "matmul_flops_per_s": 7.0}
    assert arithmetic.ceilings_of(rows[2:3]) == {}


# ---- cases ----


def test_a_mixed_launch_is_both_its_parts():
    case = Mixed(Decodes(2, 10), Prefill(3, 4))
    assert case.rows == ((1, 10), (1, 10), (3, 7))
    assert (case.num_kv_tokens, case.num_pairs) == (20 + 7, 20 + 5 + 6 + 7)


def test_a_chain_reads_several_times_the_devices_cache_as_far_as_it_may():
    assert FULL.kv_bytes(Decodes(1, 512)) == 2 << 20
    assert [FULL.num_calls(case) for case in (Decodes(1, 512), Decodes(8, 512), Decodes(256, 4096))] == [64, 16, 4]


def test_the_full_cases_cover_the_goals_and_fit():
    assert Decodes(64, 4096) in FULL.decodes
    assert all(case.num_kv_tokens <= MAX_SLOTS for case in (*FULL.decodes, *FULL.prefills, *FULL.mixed))
    assert FULL.max_kv_len == 8192 + 32768


# ---- serving ----


def record(step: int, num_rows: int, *, prefill: int = 0) -> StepRecord:
    bucket = Bucket(4, 4, prefill == 0, Variant.GREEDY)
    return StepRecord(step, step * 1.0, step * 1.0 + 0.5, num_rows, prefill, num_rows, bucket, 0)


def test_the_steady_stretch_is_the_longest_of_equal_decode_steps():
    from benchmarks.gpu.serving import period_s, steady_decodes

    rows = [(4, 0), (4, 0), (4, 8), (4, 0), (4, 0), (4, 0), (3, 0), (3, 0)]
    records = [record(step, num_rows, prefill=prefill) for step, (num_rows, prefill) in enumerate(rows)]
    stretch = steady_decodes(records)
    assert [each.step for each in stretch] == [3, 4, 5]
    assert period_s(stretch) == 1.0


# ---- goals ----


def decode(share: float | None, num_rows: int = 64, context: int = 4096) -> dict[str, Any]:
    row = {"kind": "decode attention", "case": "x", "num_rows": num_rows, "context": context}
    return row | ({"failed": "no"} if share is None else {"share_of_copy": share})


ENDED = {"kind": "ended", "case": "attention", "failed": "exit code 1"}


@pytest.mark.parametrize(
    ("rows", "got", "met"),
    [
        ([decode(0.9), decode(0.85), decode(0.1, num_rows=8), decode(0.1, context=512)], 0.85, True),
        ([decode(0.9), decode(0.84)], 0.84, False),
        ([decode(0.9), decode(None)], 0.9, None),
        ([decode(0.5), decode(None)], 0.5, False),
        ([decode(0.9), ENDED], 0.9, None),
        ([decode(0.9), ENDED | {"case": "attention_torch"}], 0.9, True),
        ([decode(0.9), decode(None) | {"skipped": "no room"}], 0.9, True),
        ([], None, None),
    ],
)
def test_the_worst_case_decides(rows: list[dict[str, Any]], got: float | None, met: bool | None):
    found = {goal["name"]: goal for goal in goals.evaluate({"attention": rows}, is_tiny=False)}["decode attention"]
    assert (found["got"], found["met"]) == (got, met)


def test_each_goal_reads_its_own_rows():
    rows = {
        "correct": [
            {"kind": "copy_pages", "case": "x", "share_of_bound": 0.9},
            {"kind": "tokens", "skipped": "no GPU"},
        ],
        "attention": [
            decode(0.9),
            {"kind": "prefill attention", "case": "x", "flash_over_ours": 1.2},
            {"kind": "mixed attention", "case": "x", "share_of_allowance": 1.01},
        ],
        "step": [
            {"kind": "decode step", "case": "x", "batch": 64, "share_of_floor": 0.8},
            {"kind": "decode step", "case": "x", "batch": 256, "share_of_floor": 0.1},
            {"kind": "prefill step", "case": "x", "chunk": 2048, "share_of_floor": 0.59},
            {"kind": "prefill step", "case": "x", "chunk": 512, "share_of_floor": 0.9},
        ],
        "engine": [
            {"kind": "idle", "case": "x", "idle_share": 0.03},
            {"kind": "compiles", "case": "x", "num_compiles": 0},
        ],
    }
    met = {found["name"]: found["met"] for found in goals.evaluate(rows, is_tiny=False)}
    assert met == {
        "numbers are right": True,
        "decode attention": True,
        "prefill attention": True,
        "mixed attention": False,
        "decode step": True,
        "prefill step": False,
        "idle between steps": False,
        "compiles after ready": True,
    }
    tiny = {found["name"]: found["met"] for found in goals.evaluate(rows, is_tiny=True)}
    assert tiny == dict.fromkeys(met, None) | {"compiles after ready": True, "numbers are right": True}
    slow = goals.evaluate(rows, is_tiny=False, obstacle="attention is xla")
    assert {found["name"]: found["met"] for found in slow} == tiny
    assert {found["obstacle"] for found in slow if found["met"] is None} == {"attention is xla"}


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "copy_pages", "case": "x", "share_of_bound": 1.5, "failed": "past its bound"},
        {"kind": "copy_pages", "case": "x", "failed": "it ended in an error"},
        {"kind": "ended", "case": "correct", "failed": "exit code 1"},
    ],
)
def test_one_failed_check_means_that_numbers_are_wrong(row: dict[str, Any]):
    right = {"kind": "copy_pages", "case": "y", "share_of_bound": 0.5}
    assert goals.evaluate({"correct": [right, row]}, is_tiny=True)[0]["met"] is False


# ---- rows and children ----


def test_a_case_that_fails_says_why_and_costs_no_other():
    def fail() -> order.Row:
        raise ValueError("first line\n  second")

    def skip() -> order.Row:
        raise order.SkippedError("no room")

    assert order.attempt({"case": "x"}, fail) == {"case": "x", "failed": "ValueError: first line second"}
    assert order.attempt({"case": "x"}, skip) == {"case": "x", "skipped": "no room"}


def test_an_order_survives_its_way_to_a_child():
    sent = order.Order(True, "model", {"copy_bytes_per_s": 2.5}, {"decode 1x1": {"torch_flash_s": 0.5}}, has_flex=True)
    assert order.Order.from_json(sent.to_json()) == sent


def test_the_ceilings_come_first_where_they_are_needed():
    assert parts.with_ceilings(["step"]) == ["ceilings", "step"]
    assert parts.with_ceilings(["policies", "engine"]) == ["engine", "policies"]


ORDER = order.Order(is_tiny=True, model="")


def test_a_child_whose_package_is_missing_is_skipped():
    child = parts.Child("attention_torch", needs=("json", "no_such_package"))
    rows = parts.run_child(child, ORDER, {}, 1.0)
    assert rows == [{"kind": "attention_torch", "case": "all", "skipped": "not installed: no_such_package"}]


def test_a_child_that_breaks_leaves_its_reason():
    (row,) = parts.run_child(parts.Child("no_such_module"), ORDER, dict(os.environ), 60.0)
    assert (row["kind"], row["case"]) == ("ended", "no_such_module")
    assert "exit code 1" in row["failed"] and "No module named" in row["failed"]


def test_a_child_that_takes_too_long_is_ended():
    (row,) = parts.run_child(parts.Child("machine"), ORDER, dict(os.environ), 0.01)
    assert row == {"kind": "ended", "case": "machine", "failed": "it took longer than 0 s"}


def test_rows_are_told_of_as_they_come():
    seen: list[list[order.Row]] = []
    rows = parts.run_child(parts.Child("machine"), ORDER, dict(os.environ), 60.0, seen.append)
    assert rows in seen and rows[0]["platform"] == "cpu"


def test_programs_are_kept_beside_the_output_or_where_the_engine_keeps_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert parts.child_environment(Path("card.cache"))["JAX_COMPILATION_CACHE_DIR"] == "card.cache"
    assert "JAX_COMPILATION_CACHE_DIR" not in parts.child_environment(None)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert parts.child_environment(Path("card.cache"))["JAX_COMPILATION_CACHE_DIR"] == "mine"


def test_tables_have_units_and_one_heading_a_kind():
    rows = [
        {"kind": "a", "case": "first", "seconds": 0.00125, "bytes_per_s": 3.2e12, "share_of_copy": 0.875},
        {"kind": "a", "case": "second", "failed": "no"},
        {"kind": "b", "case": "third", "flops_per_s": 5.5e14, "met": False},
    ]
    assert table.tables(rows).splitlines() == [
        "[a]",
        "case       time         rate  share of copy  failed",
        "first   1.25 ms  3200.0 GB/s          87.5%       -",
        "second        -            -              -      no",
        "",
        "[b]",
        "case             rate  met",
        "third  550.00 TFLOP/s   NO",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0456, "45.6 ms"), (1.2e-5, "12 µs"), (3e-8, "0.03 µs"), (1234.0, "1234 s")]
)
def test_a_duration_has_three_digits_and_a_unit(seconds: float, text: str):
    assert table.duration(seconds) == text


# ---- the whole card ----


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any]]:
    """Lines of standard output, and the JSON that was written."""
    output = tmp_path_factory.mktemp("card") / "card.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_card", "--output", str(output)],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), json.loads(output.read_text())


def test_the_card_says_first_that_tiny_figures_mean_nothing(card: tuple[list[str], dict[str, Any]]):
    lines, report = card
    assert lines[0] == "no GPU: sizes are tiny and the figures mean nothing"
    assert report["tiny"] is True
    assert json.loads(lines[-1]) == report


def test_every_part_of_the_card_measures_something_and_nothing_fails(card: tuple[list[str], dict[str, Any]]):
    _, report = card
    assert list(report["parts"]) == list(parts.PARTS)
    for name, part in report["parts"].items():
        assert [row for row in part["rows"] if "failed" in row] == [], name
        assert [row for row in part["rows"] if "skipped" not in row] != [], name


def test_the_card_has_its_goals_versions_and_commit(card: tuple[list[str], dict[str, Any]]):
    _, report = card
    assert [goal["name"] for goal in report["goals"]] == [goal.name for goal in goals.GOALS]
    assert {goal["name"]: goal["met"] for goal in report["goals"]}["compiles after ready"] is True
    assert {"jax", "jaxlib", "jax-triton", "triton", "torch", "driver"} <= report["versions"].keys()
    assert report["commit"] and report["device"]["platform"] == "cpu"


def test_every_policy_is_on_the_card(card: tuple[list[str], dict[str, Any]]):
    from sarathi_jax.scheduling.policies import POLICIES

    _, report = card
    rows = {row["case"]: row for row in report["parts"]["policies"]["rows"]}
    assert rows.keys() == POLICIES.keys()
    assert rows["sarathi"]["num_stalls"] == 0


def test_an_unknown_part_lists_the_right_ones():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_card", "--only", "steps"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no part steps: choose from correct, ceilings, attention, step" in done.stderr
