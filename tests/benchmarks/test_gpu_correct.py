"""The GPU card's check of numbers: what it covers, that its references agree, and that what is wrong is found, however little it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import correct_attention, correct_pages, correct_thresholds, correct_tokens
from benchmarks.gpu.checks import judge, judge_same, worst
from benchmarks.gpu.correct_cases import FULL, TINY, AttentionCase
from benchmarks.gpu.order import TINY_MODEL
from sarathi_jax.kernels import copy_pages_xla, ragged_attention_xla, rope_write_xla
from sarathi_jax.kernels.layer_kv import LayerKV

ATTENTION = {case.name: case for case in FULL.attention}
DECODES, MIXED = TINY.attention


# ---- what is covered ----


def test_the_full_cases_have_every_kind_of_step():
    cases = FULL.attention
    assert {case.kv_dtype for case in cases} == {"bfloat16", "float16", "float32", "int8"}
    assert {case.head_dim for case in cases} == {64, 128, 256}
    assert {case.group for case in cases} == {1, 3, 4, 71}
    assert {1, 2, 128} <= {case.num_rows for case in cases}
    assert any(case.window for case in cases) and any(case.soft_cap for case in cases)
    assert any(span.num_shared for case in cases for span in case.spans)
    assert any(case.num_tokens == 32 and sum(span.q_len for span in case.spans) < 8 for case in cases)
    assert {case.max_len >= 512 for case in cases} == {True, False}  # rows that can be cut, and rows that can't


@pytest.mark.parametrize("case", FULL.attention, ids=lambda case: f"{case.name} {case.kv_dtype}")
def test_a_step_fits_its_bucket_and_decodes_stand_first(case: AttentionCase):
    lengths = [span.q_len for span in case.spans]
    assert sum(lengths) <= case.num_tokens and len(lengths) <= case.num_rows
    assert max(span.kv_len for span in case.spans) <= case.max_len
    assert [length > 1 for length in lengths] == sorted(length > 1 for length in lengths)


def test_everything_but_tokens_of_rows_is_garbage():
    step = correct_attention.make_step(DECODES)
    tables, page_size = step.block_tables, DECODES.page_size
    assert tables[0, :2].tolist() == tables[1, :2].tolist()  # shared
    assert np.isin(tables[0, 3:], correct_attention.GARBAGE_PAGES).all()
    assert np.isin(tables[3], correct_attention.GARBAGE_PAGES).all()
    held = np.isfinite(np.asarray(step.kv.k, np.float32)).all((1, 2))
    assert held.sum() == 41 + (34 - 2 * page_size) + 1
    assert np.isnan(step.q[3:].astype(np.float32)).all()


# ---- references ----


@pytest.mark.parametrize("case", [DECODES, MIXED, ATTENTION["decodes, one long"]], ids=lambda case: case.name)
def test_both_references_agree(case: AttentionCase):
    step = correct_attention.make_step(case)
    exact, by = correct_attention.exact_of(case, step)
    assert by == "kernels.reference"
    np.testing.assert_allclose(correct_attention.vectorised(case, step).result, exact.result, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["decode, cut", "mixed, large heads"])
def test_sixteen_tokens_left_out_of_thousands_are_found(name: str):
    case = ATTENTION[name]
    step = correct_attention.make_step(case)
    exact = correct_attention.vectorised(case, step)
    bound, why = correct_attention.bound_of(case, exact)
    rounded = exact.result.astype(np.float32).astype(step.q.dtype)
    assert "failed" not in judge(rounded, exact.result, bound, why)
    np.asarray(step.kv.v)[step.block_tables[0, 20] * 16 + np.arange(16)] = 0
    assert "failed" in judge(correct_attention.vectorised(case, step).result, exact.result, bound, why)


# ---- what is wrong ----


def attend(*arrays: Any, **options: Any) -> Any:
    return ragged_attention_xla.ragged_paged_attention(*arrays, **options)


WRONG_ATTENTION: dict[str, tuple[AttentionCase, Callable[..., Any]]] = {
    "a wider window": (MIXED, lambda *arrays, **options: attend(*arrays, **options | {"window": 18})),
    "no soft cap": (MIXED, lambda *arrays, **options: attend(*arrays, **options | {"soft_cap": None})),
    "one step too large": (DECODES, lambda *arrays, **options: attend(*arrays, **options) * 1.02),
    "one token less": (DECODES, lambda q, kv, lens, *others, **options: attend(q, kv, lens - 1, *others, **options)),
    "NaN": (DECODES, lambda *arrays, **options: attend(*arrays, **options) * np.float32("nan").astype("bfloat16")),
}


@pytest.mark.parametrize("name", WRONG_ATTENTION)
def test_wrong_attention_is_found(name: str):
    assert "failed" in correct_attention.prepare(*WRONG_ATTENTION[name])()


def rope(qkv: Any, cos: Any, sin: Any, kv: LayerKV, slots: Any) -> Any:
    return rope_write_xla.rope_and_write_kv(qkv, cos, sin, kv, slots)


WRONG_ROPE: dict[str, Callable[..., Any]] = {
    "turned the other way": lambda qkv, cos, sin, kv, slots: rope(qkv, cos, -sin, kv, slots),
    "the next slot": lambda qkv, cos, sin, kv, slots: rope(qkv, cos, sin, kv, slots + 1),
    "padding written": lambda qkv, cos, sin, kv, slots: rope(qkv, cos, sin, kv, slots.clip(0, len(kv.k) - 1)),
}


# Padding is NaN, as pages are: where it was written is seen in pages of int8, and in no others.
@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in TINY.rope for name in WRONG_ROPE if case.is_int8 or name != "padding written"],
)
def test_wrong_rotations_and_slots_are_found(case: Any, name: str):
    assert "failed" in correct_pages.prepare_rope(case, WRONG_ROPE[name])()


@pytest.mark.parametrize("case", TINY.copies, ids=["bfloat16", "int8"])
def test_a_wrong_copy_is_found(case: Any):
    def wrong(kv: LayerKV, sources: Any, targets: Any, *, page_size: int) -> LayerKV:
        return copy_pages_xla.copy_pages(kv, targets.clip(0, 1), targets, page_size=page_size)

    assert "failed" in correct_pages.prepare_copy(case, wrong)()


@pytest.mark.parametrize(
    ("threshold", "top_k", "top_p", "error"),
    [
        (-np.inf, 0, 1.0, 0.0),
        (np.log(0.25), 2, 1.0, 0.0),
        (np.log(0.5), 2, 1.0, None),  # keeps one
        (np.log(0.25), 0, 0.7, 0.0),
        (np.log(0.5), 0, 0.7, 0.2),  # lacks 0.2
        (np.log(0.125), 0, 0.7, 0.05),  # 0.75 were enough
        (np.log(0.3), 0, 0.7, None),  # none of the logits
        (np.log(0.25), 2, 0.7, 0.0),  # of 2/3 and 1/3
        (np.log(0.125), 2, 0.7, None),  # below the top-k
    ],
)
def test_the_error_of_a_threshold_is_a_probability(threshold: float, top_k: int, top_p: float, error: float | None):
    logits = np.log([0.125, 0.5, 0.0625, 0.25, 0.0625])
    found = correct_thresholds.error_of(logits, float(threshold), top_k, top_p, 1.0)
    assert found == (None if error is None else pytest.approx(error, abs=1e-9))


def test_a_threshold_that_is_wrong_fails_its_case():
    assert "failed" not in correct_thresholds.verdict([0.0, 1e-6])
    assert correct_thresholds.verdict([0.0, None])["failed"] == "1 of 2 rows have a wrong threshold, row 1 first"
    assert "failed" in correct_thresholds.verdict([1e-3])


def test_the_number_nearest_to_its_bound_is_told():
    found = judge(np.array([1.0, 5.0]), np.array([1.5, 5.1]), np.array([1.0, 0.11]), "because")
    assert found == {
        "error": pytest.approx(0.1),
        "bound": 0.11,
        "share_of_bound": pytest.approx(0.1 / 0.11),
        "why": "because",
    }
    assert judge(np.array([1.0, 5.0]), np.array([1.5, 5.1]), 0.2, "")["failed"].startswith("1 of 2 numbers")
    assert "failed" in judge(np.zeros(0), np.zeros(0), 1.0, "")


def test_bits_are_the_same_or_not_whatever_they_mean():
    nan = np.array([np.nan, 1.0], np.float32)
    same, other = judge_same(nan, nan.copy(), ""), judge_same(nan, nan[::-1], "")
    assert "failed" not in same and "failed" in other
    assert worst(same, other, {"share_of_bound": 0.9}) is other


# ---- tokens ----

SMALL = correct_tokens.TokensPlan(
    model={**TINY_MODEL, "num_hidden_layers": 2},
    options={"token_budget": 4, "max_num_seqs": 1, "max_model_len": 32, "num_pages": 8},
    prompts=(3, 9),
    num_output_tokens=4,
)


def test_tokens_that_part_are_wrong_unless_both_are_as_probable():
    def logits_of(ids: list[int]) -> Any:
        assert ids == [7, 1]
        return np.array([0.0, 0.5, 0.50001])

    same = correct_tokens.judge_tokens([[7]], [[1, 2, 0]], [[1, 2, 0]], logits_of)
    tie = correct_tokens.judge_tokens([[7]], [[1, 1, 0]], [[1, 2, 0]], logits_of)
    wrong = correct_tokens.judge_tokens([[7], [7]], [[1, 0, 0], [1, 2, 0]], [[1, 2, 0], [1, 2, 0]], logits_of)
    assert (same["num_parted"], same["error"]) == (0, 0.0)
    assert (tie["num_parted"], tie.get("failed")) == (1, None)
    assert wrong["failed"] == "1 of 2 outputs differ"


def test_an_engine_agrees_with_itself(monkeypatch: pytest.MonkeyPatch):
    def first_difference(tokens: list[int], right: list[int]) -> int:
        assert len(tokens) == 4 and tokens == right
        return 3  # as if they did not: the plain forward pass is asked

    monkeypatch.setattr(correct_tokens, "first_difference", first_difference)
    found = correct_tokens.compare("xla", "xla", SMALL)
    assert (found["num_tokens"], found["num_parted"], found["error"]) == (8, 2, 0.0)
