"""The budget that keeps a latency goal, on machines made up so that the answer can be worked out by hand."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.step_profile import StepProfile, StepSample, mesh_name, read_profile, write_profile
from sarathi_jax.scheduling.step_times import StepLoad
from sarathi_jax.scheduling.token_budget import (
    RELAXED,
    STRICT,
    BudgetLoad,
    budget_load,
    compute_token_budget,
    default_tbt_slo_s,
    profiled_sizes,
    with_token_budget,
)

SIZES = (32, 128, 256, 384, 512, 768, 1000, 1024)
LOAD = BudgetLoad(num_decodes=100, context=1000, tail_ratio=1.25)


class Table:
    """Step times as a profile has them: 10 ms, and 10 ms a tile of 128 tokens; attention costs nothing. P99: 25, 37.5, 50, 62.5, 87.5, 112.5 ms of the multiples."""

    def seconds(self, load: StepLoad) -> float:
        return 0.01 + 0.01 * -(-load.num_tokens // 128)


@pytest.mark.parametrize(
    ("slo_ms", "budget"), [(25, 128), (37.4, 128), (37.5, 256), (60, 384), (87.5, 768), (1e6, 1024)]
)
def test_f12_the_largest_profiled_total_whose_p99_is_within_the_goal(slo_ms: float, budget: int) -> None:
    assert compute_token_budget(slo_ms / 1e3, Table(), SIZES, LOAD) == budget


def test_f12_a_goal_that_nothing_keeps_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ConfigError, match=r"tbt_slo_ms=24.9 must be at least 25, .* 128 tokens with 100 decodes at 1000"
    ):
        compute_token_budget(0.0249, Table(), SIZES, LOAD)
    with pytest.raises(ConfigError, match="more than max_num_seqs=1024 tokens, got a profile of steps of up to 1024"):
        compute_token_budget(1.0, Table(), SIZES, replace(LOAD, num_decodes=1024))


@given(st.lists(st.floats(0.03, 2.0), min_size=2, max_size=2), st.integers(1, 127), st.integers(1, 8000))
def test_f12_a_looser_goal_never_has_a_smaller_budget(slos_s: list[float], num_decodes: int, context: int) -> None:
    load = BudgetLoad(num_decodes, context, 1.25)
    tight, loose = (compute_token_budget(slo_s, Table(), SIZES, load) for slo_s in sorted(slos_s))
    assert tight <= loose


def test_f12_the_strict_goal_has_a_smaller_budget_than_the_relaxed_one() -> None:
    # Strict is 5 x 20 ms, which 768 tokens keep; relaxed 25 x 20 ms, which all do.
    budgets = [
        compute_token_budget(default_tbt_slo_s(Table(), each), Table(), SIZES, LOAD) for each in (STRICT, RELAXED)
    ]
    assert budgets == [768, 1024]


def test_f13_budgets_are_whole_tiles() -> None:
    """1000 tokens cost as much as 1024: the profile has them, and they are never the answer; 32 are less than a tile, and a bucket of their own."""
    budgets = {compute_token_budget(slo_ms / 1e3, Table(), SIZES, LOAD) for slo_ms in range(25, 200)}
    assert budgets == {128, 256, 384, 512, 768, 1024}
    assert compute_token_budget(1.0, Table(), SIZES[:-1], LOAD) == 768
    assert compute_token_budget(0.026, Table(), SIZES[:1], BudgetLoad(8, 100)) == 32


@pytest.mark.parametrize(("step_ms", "strict_s", "relaxed_s"), [(20, 0.1, 0.5), (40, 0.2, 1.0), (200, 1.0, 5.0)])
def test_f18_goals_are_5_and_25_steps_of_32_decodes_at_4k(step_ms: float, strict_s: float, relaxed_s: float) -> None:
    """The paper's table 3: what its goals imply for Mistral-7B, Yi-34B and the two large models."""

    class Machine:
        def seconds(self, load: StepLoad) -> float:
            assert load == StepLoad(32, 32, 32, 32 * 4096, 0)
            return step_ms / 1e3

    assert default_tbt_slo_s(Machine()) == pytest.approx(strict_s)
    assert default_tbt_slo_s(Machine(), RELAXED) == pytest.approx(relaxed_s)


def test_a_full_step_is_all_decodes_and_a_chunk_that_ends_at_the_same_context() -> None:
    # 412 tokens of a prompt after 588; a chunk of 1,948 is longer than that, and starts at 0.
    assert LOAD.step(512) == StepLoad(512, 101, 100, 100_000, 412 * (588 + 206))
    assert LOAD.step(2048) == StepLoad(2048, 101, 100, 100_000, 1948**2 / 2)


# ---- from a profile


def make_profile(**fields: Any) -> StepProfile:
    """5 ms and 0.05 ms a token, with nothing for attention: 128, 256 and 384 tokens take 11.4, 17.8 and 24.2 ms; P99 is a quarter more."""
    samples = []
    for size, num_decodes in [(1, 1), (8, 8), (128, 0), (128, 8), (256, 0), (256, 8), (384, 0), (384, 8)]:
        for context in (50, 1500):
            chunk = size - num_decodes
            load = StepLoad(size, num_decodes + (chunk > 0), num_decodes, num_decodes * context, chunk * context)
            seconds = 5e-3 + 0.05e-3 * size
            samples.append(StepSample(**load._asdict(), median_s=seconds, p99_s=1.25 * seconds, num_repeats=100))
    given = {"model": "demo", "device": "cpu", "mesh": "", "dtype": "auto", "kv_dtype": "auto", "kernels": "auto"}
    given |= {"jax_version": "0.11.2", "token_budget": 384, "max_num_seqs": 8, "max_model_len": 2048}
    given |= {
        "num_kv_tokens": 8 * 1500,
        "decode_sizes": (1, 8),
        "mixed_sizes": (128, 256, 384),
        "samples": tuple(samples),
    }
    return StepProfile(**{**given, **fields})


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    write_profile(make_profile(), tmp_path / "profile.json")
    return tmp_path / "profile.json"


@pytest.mark.parametrize(
    ("slo_ms", "budget"), [(14.3, 128), (22.2, 128), (22.3, 256), (30.2, 256), (30.3, 384), (99, 384)]
)
def test_f12_an_engine_takes_the_budget_of_its_profile(profile_file: Path, slo_ms: float, budget: int) -> None:
    """P99 is 14.25, 22.25 and 30.25 ms."""
    config = with_token_budget(EngineConfig(tbt_slo_ms=slo_ms, profile=str(profile_file), max_num_seqs=8))
    assert config == EngineConfig(token_budget=budget, max_num_seqs=8)
    assert with_token_budget(config) is config


def test_a_full_machine_has_what_its_requests_and_its_cache_can_hold() -> None:
    load = budget_load(make_profile())
    assert (load.num_decodes, load.context) == (8, 1500) and load.tail_ratio == pytest.approx(1.25)
    assert budget_load(make_profile(), max_num_seqs=2).context == 2048
    assert budget_load(make_profile(max_model_len=10**6, num_kv_tokens=10**9)).context == 4096
    # Two stages share the requests: half of them in each microbatch.
    assert budget_load(make_profile(num_stages=2)).num_decodes == 4


def test_sizes_of_a_profile_that_is_not_padded_are_those_that_were_measured() -> None:
    assert profiled_sizes(make_profile()) == (128, 256, 384)
    assert profiled_sizes(make_profile(mixed_sizes=())) == [128, 256, 384]


def test_a_policy_that_looks_at_the_goal_itself_keeps_it(profile_file: Path) -> None:
    config = EngineConfig(policy="slo", tbt_slo_ms=1.0, profile=str(profile_file), token_budget=256)
    assert with_token_budget(config) is config
    assert EngineConfig(policy="slo", tbt_slo_ms=1.0).step_tokens == 2048


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tbt_slo_ms": 0.0}, "tbt_slo_ms=0.0 must be above 0: it is a time in milliseconds"),
        ({"tbt_slo_ms": "fast"}, "tbt_slo_ms='fast' must be above 0"),
        ({"tbt_slo_ms": 100.0}, "needs a profile of this machine, got none: run `sarathi-jax bench profile demo --out"),
        (
            {"tbt_slo_ms": 100.0, "token_budget": 512},
            "chooses the token budget, got token_budget=512 besides: leave out one",
        ),
        ({"profile": 7}, "profile must be a text, got 7"),
    ],
)
def test_options_that_disagree(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "other"}, "must be of model='other', got one of 'demo': run `sarathi-jax bench profile`"),
        ({"mesh": "tensor=2"}, "must be of mesh='tensor=2', got one of ''"),
        ({"tbt_slo_ms": 9.0}, "tbt_slo_ms=9 must be at least 14.25, .*128 tokens with 8 decodes at 1500 tokens"),
    ],
)
def test_a_profile_that_does_not_fit_the_engine(profile_file: Path, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"tbt_slo_ms": 50.0, "profile": str(profile_file), "max_num_seqs": 8, **options}
    with pytest.raises(ConfigError, match=message):
        with_token_budget(EngineConfig(**given))


def test_meshes_are_spelled_in_one_way() -> None:
    assert mesh_name(EngineConfig()) == mesh_name(EngineConfig(mesh="tensor=1")) == ""
    assert mesh_name(EngineConfig(mesh="tensor=2, stage=4,data=1")) == "stage=4,tensor=2"


# ---- the file


def test_a_profile_is_read_as_it_was_written(profile_file: Path) -> None:
    assert read_profile(profile_file) == make_profile()


SAMPLE = asdict(make_profile().samples[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be what `sarathi-jax bench profile` wrote, got a fault: .*Write it anew"),
        ("[]", "its format must be 'sarathi-jax step profile'"),
        ('{"format": "sarathi-jax step profile", "version": 2}', "its version must be 1, and is 2"),
        ('{"format": "sarathi-jax step profile", "version": 1}', "missing required field `model`"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_profile(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json must be what .* wrote, got a fault: .*No such file"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(
        ConfigError, match=r"the profile must be written to .*, got .*: name a file that can be written"
    ):
        write_profile(make_profile(), tmp_path / "none" / "profile.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_rows": 2}, "num_decodes <= num_rows <= num_tokens"),
        ({"num_decodes": -1}, "num_decodes <= num_rows <= num_tokens"),
        ({"decode_context": 0}, "num_decodes <= num_rows"),
        ({"chunk_pairs": -1.0}, "counts >= 0"),
        ({"median_s": 0.0}, "0 < median_s <= p99_s"),
        ({"p99_s": 1e-9}, "0 < median_s <= p99_s"),
        ({"num_repeats": 0}, "num_repeats >= 1"),
        ({"num_tokens": "many"}, "Expected `int`, got `str`"),
    ],
)
def test_a_file_with_numbers_that_can_not_be(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tmp_path / "profile.json"
    write_profile(make_profile(), path)
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "samples": [{**SAMPLE, **fields}]}))
    with pytest.raises(ConfigError, match=message):
        read_profile(path)


def test_sizes_that_do_not_ascend() -> None:
    with pytest.raises(ConfigError, match=r"mixed_sizes must be positive and ascend, got \(256, 128\)"):
        make_profile(mixed_sizes=(256, 128))
