"""How a device's memory is divided: weights, temporary buffers of the largest program, and KV pages in all that is left."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax

from sarathi_jax.errors import CapacityError, ConfigError

# A CPU's memory is the operating system's and the user's too.
CPU_SHARE = 0.5
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one device. limit_bytes: what the engine may use of it."""

    limit_bytes: int
    weight_bytes: int
    temp_bytes: int
    page_bytes: int
    num_pages: int
    page_size: int

    @property
    def kv_bytes(self) -> int:
        return self.num_pages * self.page_bytes

    @property
    def num_kv_tokens(self) -> int:
        return self.num_pages * self.page_size

    @property
    def needed_bytes(self) -> int:
        return self.needed_bytes_with(self.temp_bytes)

    def needed_bytes_with(self, temp_bytes: int) -> int:
        """What it all comes to if programs need this much temporary memory."""
        return self.weight_bytes + temp_bytes + self.kv_bytes

    def describe(self) -> str:
        """The division, in one line."""
        return (
            f"weights {_gib(self.weight_bytes)} + temporary {_gib(self.temp_bytes)} + KV {_gib(self.kv_bytes)}"
            f" ({self.num_pages} pages, {self.num_kv_tokens} tokens) of {_gib(self.limit_bytes)}"
        )


def plan_memory(
    *,
    limit_bytes: int,
    weight_bytes: int,
    temp_bytes: int,
    page_bytes: int,
    page_size: int,
    min_pages: int,
    max_pages: int,
    num_pages: int | None,
) -> MemoryPlan:
    """Divide a device's memory.

    Args:
      min_pages: what one request of the greatest length needs.
      max_pages: what all batch slots can use at once; more would lie idle.
      num_pages: the user's choice, or None for what fits, between the two.
    Raises: CapacityError, with the arithmetic and three remedies, if it does not fit.
    """
    left = limit_bytes - weight_bytes - temp_bytes
    chosen = min(left // page_bytes, max_pages) if num_pages is None else num_pages
    plan = MemoryPlan(limit_bytes, weight_bytes, temp_bytes, page_bytes, max(chosen, min_pages), page_size)
    if plan.needed_bytes > limit_bytes and num_pages is None:
        raise CapacityError(
            f"The model must fit into the memory there is: weights {_gib(weight_bytes)} + temporary {_gib(temp_bytes)} + KV of one longest"
            f" request {_gib(min_pages * page_bytes)} ({min_pages} pages of {page_size} tokens) = {_gib(plan.needed_bytes)}, got"
            f" {_gib(limit_bytes)}: raise memory_fraction, lower max_model_len or token_budget, or spread the model over more devices with mesh."
        )
    if num_pages is not None and (num_pages < min_pages or plan.needed_bytes > limit_bytes):
        raise CapacityError(
            f"num_pages={num_pages} must be at least {min_pages} (one request of the greatest length) and fit: weights {_gib(weight_bytes)} +"
            f" temporary {_gib(temp_bytes)} + KV {_gib(num_pages * page_bytes)}, got {_gib(limit_bytes)}: choose another num_pages, lower"
            " max_model_len, or leave num_pages unset to use what fits."
        )
    return plan


def device_limit_bytes(device: jax.Device, memory_fraction: float) -> int:  # pyright: ignore[reportInvalidTypeForm]
    """What the engine may use of a device: a share of what jax has of an accelerator's memory, or of half of the host's.

    Raises: ConfigError if an accelerator does not say how much that is.
    """
    if device.platform == "cpu":
        return int(host_memory_bytes() * CPU_SHARE * memory_fraction)
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        raise ConfigError(
            f"{device.device_kind} must say how much memory jax has of it, got nothing: unset XLA_PYTHON_CLIENT_ALLOCATOR, which its default allocator needs."
        )
    return int(stats["bytes_limit"] * memory_fraction)


def host_memory_bytes() -> int:
    """Memory of this host, or of the container that the process runs in if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _CGROUP_LIMITS:
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
