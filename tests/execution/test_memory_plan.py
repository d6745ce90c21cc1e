"""The memory plan: its arithmetic, what it gives KV pages, and its refusals with what to do about them."""

from typing import Any

import pytest

from sarathi_jax.errors import CapacityError, ConfigError
from sarathi_jax.execution.memory_plan import MemoryPlan, device_limit_bytes, host_memory_bytes, plan_memory

GIB = 2**30
ROOM = {
    "limit_bytes": 10 * GIB,
    "weight_bytes": 4 * GIB,
    "temp_bytes": 1 * GIB,
    "page_bytes": GIB // 4,
    "page_size": 16,
    "min_pages": 3,
    "max_pages": 100,
    "num_pages": None,
}


def plan(**changes: Any) -> MemoryPlan:
    return plan_memory(**{**ROOM, **changes})


def test_pages_take_all_that_is_left():
    made = plan()
    assert (made.num_pages, made.kv_bytes, made.num_kv_tokens) == (20, 5 * GIB, 320)
    assert made.needed_bytes == 10 * GIB
    assert made.needed_bytes_with(3 * GIB) == 12 * GIB


def test_part_of_a_page_is_no_page():
    assert plan(temp_bytes=GIB + 1).num_pages == 19


def test_no_more_pages_than_all_slots_can_use():
    assert plan(max_pages=7).num_pages == 7


def test_the_last_page_that_fits_is_enough():
    assert plan(limit_bytes=5 * GIB + 3 * GIB // 4).num_pages == 3


def test_the_users_number_is_taken_as_it_is():
    assert plan(num_pages=3).num_pages == 3
    assert plan(num_pages=20, max_pages=5).num_pages == 20


def test_too_large_a_model_is_refused_with_the_arithmetic_and_three_remedies():
    with pytest.raises(CapacityError) as caught:
        plan(limit_bytes=5 * GIB + 3 * GIB // 4 - 1)
    text = str(caught.value)
    assert "weights 4.00 GiB + temporary 1.00 GiB + KV of one longest request 0.75 GiB" in text
    assert "(3 pages of 16 tokens) = 5.75 GiB, got 5.75 GiB" in text
    assert "raise memory_fraction, lower max_model_len or token_budget, or spread the model over more devices" in text


@pytest.mark.parametrize("limit_gib", [0, 1, 4])
def test_weights_alone_too_large(limit_gib: int):
    with pytest.raises(CapacityError, match=rf"= 5.75 GiB, got {limit_gib}.00 GiB"):
        plan(limit_bytes=limit_gib * GIB)


@pytest.mark.parametrize("num_pages", [2, 21])
def test_a_number_of_pages_too_small_or_too_large_is_refused(num_pages: int):
    kv_gib = num_pages / 4
    with pytest.raises(CapacityError) as caught:
        plan(num_pages=num_pages)
    text = str(caught.value)
    assert f"num_pages={num_pages} must be at least 3 (one request of the greatest length) and fit" in text
    assert f"temporary 1.00 GiB + KV {kv_gib:.2f} GiB, got 10.00 GiB: choose another num_pages" in text


def test_one_line_says_it_all():
    line = plan().describe()
    assert line == "weights 4.00 GiB + temporary 1.00 GiB + KV 5.00 GiB (20 pages, 320 tokens) of 10.00 GiB"


class Accelerator:
    platform = "gpu"
    device_kind = "NVIDIA H200"

    def __init__(self, stats: dict[str, int] | None) -> None:
        self.stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats


def test_an_accelerators_own_limit_counts():
    assert device_limit_bytes(Accelerator({"bytes_limit": 80 * GIB}), 0.5) == 40 * GIB


def test_a_cpu_may_use_half_of_the_hosts_memory():
    cpu = Accelerator(None)
    cpu.platform = "cpu"
    assert device_limit_bytes(cpu, 0.9) == pytest.approx(0.45 * host_memory_bytes(), abs=2)


def test_an_accelerator_that_does_not_say_what_it_has_is_refused():
    with pytest.raises(ConfigError, match=r"NVIDIA H200 must say how much memory .* unset XLA_PYTHON_CLIENT_ALLOCATOR"):
        device_limit_bytes(Accelerator(None), 0.9)
