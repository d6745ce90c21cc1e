"""Compiled programs: what the ledger says of each, compiles after ready, and the folder that keeps them."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import CapacityError, ConfigError
from sarathi_jax.execution import build
from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.execution.compile_ledger import CACHE_HIT_EVENT, CompileLedger, watch_cache
from sarathi_jax.execution.programs import agree_on_cache, use_compile_cache
from sarathi_jax.group.facts import digest


def test_every_program_is_in_the_ledger_once(tiny: Any):
    ledger = tiny.programs.ledger
    buckets = {(bucket.name, bucket.num_tokens, bucket.num_rows) for bucket in tiny.programs.table.buckets}
    listed = [(entry.name, entry.num_tokens, entry.num_rows) for entry in ledger.entries]
    assert set(listed) == buckets | {("make state", 0, 0), ("set slot", 0, 0), ("set masks 4", 0, 4)}
    assert len(listed) == len(set(listed))
    assert all(entry.seconds > 0 for entry in ledger.entries)
    assert ledger.num_after_ready == 0


def test_the_plan_holds_what_the_largest_program_needs(tiny: Any):
    ledger, plan = tiny.programs.ledger, tiny.programs.plan
    largest = max(ledger.entries, key=lambda entry: entry.memory_bytes)
    assert ledger.max_memory_bytes == largest.memory_bytes > 0
    assert plan.needed_bytes_with(ledger.max_memory_bytes) <= plan.limit_bytes
    assert plan.weight_bytes == sum(leaf.nbytes for leaf in tiny.params)


def test_pages_are_not_copied_by_a_step(tiny: Any):
    """Donated and written in place: every page array goes out in the buffer it came in by."""
    for step in tiny.programs.programs.steps.values():
        pages = tiny.programs.plan.kv_bytes
        assert step.memory_analysis().alias_size_in_bytes >= pages


def record(ledger: CompileLedger, name: str) -> None:
    ledger.record(name, (8, 4), 1.5, 1000, is_cache_hit=name == "found")


def test_a_compile_after_ready_is_counted_and_logged(caplog: pytest.LogCaptureFixture):
    ledger = CompileLedger()
    record(ledger, "early")
    record(ledger, "found")
    assert (ledger.num_after_ready, ledger.num_cache_hits, caplog.messages) == (0, 1, [])
    ledger.mark_ready()
    record(ledger, "late")
    assert ledger.num_after_ready == 1
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.WARNING, "compiled late while serving: requests waited 1.50 s")
    ]


def test_an_empty_ledger_needs_no_memory():
    assert CompileLedger().max_memory_bytes == 0


def test_a_hit_is_seen_inside_the_watch_alone():
    jax.monitoring.record_event(CACHE_HIT_EVENT)
    with watch_cache() as first:
        pass
    with watch_cache() as second:
        jax.monitoring.record_event(CACHE_HIT_EVENT)
    assert (first, second) == ([False], [True])


NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def no_cache() -> Iterator[None]:
    """A process without a cache; what it had comes back."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update(NAMES[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def cache_folder() -> str | None:
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.usefixtures("no_cache")
def test_a_new_folder_is_for_its_owner_alone(tmp_path: Path):
    folder = tmp_path / "deep" / "cache"
    use_compile_cache(str(folder))
    assert cache_folder() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("no_cache")
def test_the_users_cache_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compile_cache(None)
    assert cache_folder() == str(tmp_path / "sarathi-jax" / "compiled")
    assert (tmp_path / "sarathi-jax" / "compiled").stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("no_cache")
def test_no_folder_no_cache():
    use_compile_cache("")
    assert cache_folder() is None


@pytest.mark.usefixtures("no_cache")
def test_a_folder_that_only_others_may_read_is_closed(tmp_path: Path):
    tmp_path.chmod(0o755)
    use_compile_cache(str(tmp_path))
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_may_have_written_to_is_refused(tmp_path: Path, mode: int):
    """What is loaded from it is run."""
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match=r"must be a folder of your own, got .*others can write to it.*pass ''"):
        use_compile_cache(str(tmp_path))
    assert cache_folder() is None


@pytest.mark.usefixtures("no_cache")
def test_someone_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=r"got .*it belongs to another user.*choose another, or pass ''"):
        use_compile_cache(str(tmp_path))


@pytest.mark.usefixtures("no_cache")
def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="compile_cache must be a folder of your own"):
        use_compile_cache(str(tmp_path / "file"))


def test_a_cache_that_the_process_has_is_left_as_it_is(tmp_path: Path):
    before = cache_folder()
    assert before
    use_compile_cache(str(tmp_path / "other"))
    assert cache_folder() == before
    assert not (tmp_path / "other").exists()


class FakeGroup:
    """Two processes; the other one has a folder of its own."""

    def __init__(self, other: Path) -> None:
        self.other = other

    def exchange(self, topic: str, value: str) -> list[str]:
        assert topic == "compiled programs"
        names = sorted(path.name for path in self.other.rglob("*") if not path.name.endswith("-atime"))
        return [value, digest("\n".join(names))]


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(
    ("backend", "theirs", "is_kept"),
    [
        ("gpu", ["step-1-cache", "step-1-atime", "tuning"], True),
        ("gpu", ["step-1-cache", "tuning"], True),
        ("gpu", ["step-1-cache"], False),
        ("gpu", [], False),
        ("cpu", [], True),
    ],
)
def test_a_group_keeps_programs_only_where_all_have_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, theirs: list[str], is_kept: bool
):
    """A GPU's process that finds a program does not tune it together with those that don't, which wait."""
    for folder, names in (("ours", ["step-1-cache", "step-1-atime", "tuning"]), ("theirs", theirs)):
        (tmp_path / folder).mkdir(mode=0o700)
        for name in names:
            (tmp_path / folder / name).write_text("")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    use_compile_cache(str(tmp_path / "ours"))
    group: Any = FakeGroup(tmp_path / "theirs")
    try:
        agree_on_cache(group)
        assert jax.config.jax_enable_compilation_cache == is_kept  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_memory_that_something_else_holds_is_said_so(tiny: Any) -> None:
    def full() -> None:
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 62277025792 bytes."
        )

    broken = dataclasses.replace(tiny.programs, programs=dataclasses.replace(tiny.programs.programs, make_state=full))
    with (
        pytest.raises(
            CapacityError, match=r"must fit beside the weights \(weights .*Free it, or lower memory_fraction"
        ),
        build.memory_named(broken),
    ):
        broken.executor(tiny.params).warm_up(progress=False)


def test_where_pages_are_short_the_compiler_is_asked_what_steps_need(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the estimate, which is from above, 200 pages are left of the 16 x 24 that could be used; by what the largest step needs, all of them."""
    state, config = (
        tiny.programs.model_state,
        EngineConfig(token_budget=32, max_num_seqs=16, max_model_len=96, page_size=4),
    )
    table = BucketTable(32, 16, variants=(Variant.GREEDY,), is_sparse=True)
    estimate = build._Planner(state, config, jnp.dtype("float32"), table, 0).estimated_temp_bytes()
    limit = state.num_bytes + estimate + 200 * tiny.programs.plan.page_bytes
    planner = build._Planner(state, config, jnp.dtype("float32"), table, limit)
    monkeypatch.setattr(build, "device_limit_bytes", lambda device, fraction: limit)
    assert planner.plan(estimate).num_pages == 200
    plan = build.compile_engine(state, config, table, progress=False).plan
    assert (plan.num_pages, plan.temp_bytes < estimate // 4) == (24 * 16, True)
