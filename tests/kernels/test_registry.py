"""Choosing an implementation: the first that can, or the named one, with words for why not."""

import logging
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.kernels import registry
from sarathi_jax.kernels.ragged_attention_xla import ragged_paged_attention
from sarathi_jax.kernels.registry import Implementation, Use, choose

CPU: dict[str, Any] = {"platform": "cpu", "dtype": "float32", "head_dim": 64}
GPU: dict[str, Any] = {**CPU, "platform": "gpu"}


def fast() -> str:
    return "fast"


def plain() -> str:
    return "plain"


def only_gpu(use: Use) -> str | None:
    return None if use.platform == "gpu" else f"it needs a GPU, and this is {use.platform}"


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"fast": Implementation(fast, only_gpu), "plain": Implementation(plain, lambda use: None)}
    monkeypatch.setitem(registry.OPERATIONS, "double", table)
    registry._log_once.cache_clear()


def test_attention_on_a_cpu_is_xla() -> None:
    assert choose("ragged_paged_attention", **CPU) is ragged_paged_attention


def test_the_first_that_can_is_taken() -> None:
    assert choose("double", **GPU) is fast
    assert choose("double", **CPU) is plain


def test_a_name_overrides_the_order() -> None:
    assert choose("double", **GPU, implementation="plain") is plain


def test_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=registry.__name__):
        choose("double", **CPU)
        choose("double", **CPU)
    assert caplog.messages == ["double: plain (not fast: it needs a GPU, and this is cpu)"]


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="'fats' is no implementation of double: there is auto, fast, plain"):
        choose("double", **CPU, implementation="fats")
    with pytest.raises(
        ConfigError, match="'triple' is no operation: there is ragged_paged_attention, write_kv, double"
    ):
        choose("triple", **CPU)


def test_a_named_one_that_can_not_says_why() -> None:
    with pytest.raises(ConfigError, match=r"'fast' can't serve double here: it needs a GPU.* Use plain\."):
        choose("double", **CPU, implementation="fast")


def test_nothing_that_can_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.OPERATIONS, "double", {"fast": Implementation(fast, only_gpu)})
    with pytest.raises(ConfigError, match=r"Nothing can serve double here \(not fast: it needs a GPU"):
        choose("double", **CPU)
