"""Choosing an implementation: the first that can, or the named one, with words for why not."""

import importlib.util
import logging

import numpy as np
import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.kernels import registry, triton_launch
from sarathi_jax.kernels.gpu import A100, H100, GpuTarget, gpu_target
from sarathi_jax.kernels.ragged_attention_xla import ragged_paged_attention
from sarathi_jax.kernels.registry import Implementation, Use, choose

CPU = Use("cpu", np.dtype(np.float32), 64)
GPU = Use("gpu", np.dtype(np.float32), 64, H100)


def fast() -> str:
    return "fast"


def plain() -> str:
    return "plain"


def only_gpu(use: Use) -> str | None:
    return None if use.platform == "gpu" else f"it needs a GPU, and this is {use.platform}"


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "fast": Implementation(lambda use: fast, only_gpu),
        "plain": Implementation(lambda use: plain, lambda use: None),
    }
    monkeypatch.setitem(registry.OPERATIONS, "double", table)
    registry._log_once.cache_clear()


def test_attention_on_a_cpu_is_xla() -> None:
    assert choose("ragged_paged_attention", CPU) is ragged_paged_attention


@pytest.mark.parametrize(
    ("use", "obstacle"),
    [
        (CPU, "it needs an NVIDIA GPU, and this is cpu"),
        (Use("gpu", np.dtype(np.float64), 64, A100), "its KV is one of float32, bfloat16, float16, int8, not float64"),
        (Use("gpu", np.dtype(np.float32), 512, A100), "its heads are even and at most 256 wide, not 512"),
        (Use("gpu", np.dtype(np.float32), 64, GpuTarget(75, 40)), "8.0, 8.6, 8.9, 9.0, and this GPU has 7.5"),
        (Use("gpu", np.dtype(np.float32), 64, GpuTarget(120, 170)), "8.0, 8.6, 8.9, 9.0, and this GPU has 12.0"),
        (Use("gpu", np.dtype(np.float32), 256, GpuTarget(89, 128)), "at most 128 wide, not 256"),
        (Use("gpu", np.dtype(np.float32), 64), "it needs an NVIDIA GPU, and this is another"),
        (Use("gpu", np.dtype(np.int8), 128, H100), None),
    ],
)
def test_what_triton_serves(use: Use, obstacle: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "find_spec", lambda name: object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    got = registry.OPERATIONS["ragged_paged_attention"]["triton"].obstacle(use)
    assert got == obstacle if obstacle is None else obstacle in (got or "")


def test_a_gpu_without_jax_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(
        triton_launch, "find_spec", lambda name: importlib.util.find_spec("json") if name == "triton" else None
    )
    got = registry.OPERATIONS["rope_and_write_kv"]["triton"].obstacle(GPU)
    assert got == "jax_triton is not installed (pip install 'sarathi-jax[cuda12]')"


def test_the_interpreter_is_for_those_who_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"implementation": "triton-interpreter"}
    with pytest.raises(ConfigError, match="it computes bfloat16 wrongly"):
        choose("copy_pages", Use("cpu", np.dtype("bfloat16"), 64), **asked)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match=r"TRITON_INTERPRET=1 must be set\. Use xla"):
        choose("copy_pages", CPU, **asked)


def test_a_target_is_read_from_a_device() -> None:
    class Described:
        platform, compute_capability, core_count = "gpu", "9.0", 132

    class Host:
        platform = "cpu"

    class Amd(Described):
        compute_capability = "gfx942"

    assert (gpu_target(Described()), gpu_target(Host()), gpu_target(Amd())) == (H100, None, None)


def test_the_first_that_can_is_taken() -> None:
    assert choose("double", GPU) is fast
    assert choose("double", CPU) is plain


def test_a_name_overrides_the_order() -> None:
    assert choose("double", GPU, implementation="plain") is plain


def test_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=registry.__name__):
        choose("double", CPU)
        choose("double", CPU)
    assert caplog.messages == ["double: plain (not fast: it needs a GPU, and this is cpu)"]


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="'fats' is no implementation of double: there is auto, fast, plain"):
        choose("double", CPU, implementation="fats")
    with pytest.raises(
        ConfigError,
        match="'triple' is no operation: there is ragged_paged_attention, rope_and_write_kv, filter_thresholds, copy_pages, double",
    ):
        choose("triple", CPU)


def test_a_named_one_that_can_not_says_why() -> None:
    with pytest.raises(ConfigError, match=r"'fast' can't serve double here: it needs a GPU.* Use plain\."):
        choose("double", CPU, implementation="fast")


def test_nothing_that_can_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.OPERATIONS, "double", {"fast": Implementation(lambda use: fast, only_gpu)})
    with pytest.raises(ConfigError, match=r"Nothing can serve double here \(not fast: it needs a GPU"):
        choose("double", CPU)
