"""Links, by arithmetic on their own constants: rings over hosts, pairs that share an adapter, GPUs that are no pair."""

import pytest

from sarathi_jax.simulation.hardware import load_system
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.placement import Group, group_of

PAIRWISE, DGX = Links(load_system("pairwise-a100")), Links(load_system("dgx-a100"))
MB = 2**20


def test_an_all_reduce_of_one_device_is_none() -> None:
    assert PAIRWISE.all_reduce_s(MB, group_of([3], 4)) == 0
    assert PAIRWISE.collective_s("all-gather", MB, group_of([3], 4)) == 0


def test_two_gpus_that_are_no_pair_talk_as_slowly_as_four() -> None:
    pair, apart, four = (PAIRWISE.all_reduce_s(64 * MB, group_of(each, 4)) for each in ([2, 3], [1, 3], range(4)))
    assert apart == four > 5 * pair
    # A switch makes no difference between them.
    assert DGX.all_reduce_s(MB, group_of([1, 3], 8)) == DGX.all_reduce_s(MB, group_of([2, 3], 8))


def test_a_ring_over_hosts_moves_what_rings_move() -> None:
    """2 (n - 1) / n of the message over the one Ethernet adapter, at 2.3 GB/s, and 2 (n - 1) steps of 0.12 ms."""
    seconds = PAIRWISE.all_reduce_s(23e6, group_of(range(8), 4))
    assert seconds == pytest.approx(14 * 0.12e-3 + 2 * 7 / 8 * 23e6 / 2.3e9)


def test_adapters_of_more_gpus_carry_more_until_rivals_share_them() -> None:
    """Of a DGX's network: 5.85 GB/s a GPU, four times that a host."""
    base_s = 14 * 0.021e-3
    message = 4 * 5.85e9
    assert DGX.all_reduce_s(message, group_of(range(8), 4)) == pytest.approx(base_s + 2 * 7 / 8)
    one_each = Group(num_devices=2, num_hosts=2, gpus_per_host=1, span=1, num_rivals=8)
    assert DGX.all_reduce_s(message, one_each) == pytest.approx(2 * 0.021e-3 + 8)


def test_gathering_and_scattering_are_half_of_an_all_reduce() -> None:
    group = group_of(range(4), 8)
    launch_s = DGX.system.launch_s
    whole = DGX.collective_s("all-reduce", MB, group) - launch_s
    for kind in ("all-gather", "reduce-scatter", "all-to-all"):
        assert DGX.collective_s(kind, MB, group) - launch_s == pytest.approx(whole / 2)


def test_pairs_that_send_at_once_share_the_line() -> None:
    """Four of 2.3 GB/s fit into 12.5 GB/s; eight do not."""
    one, four, eight = (PAIRWISE.send_s(1e9, is_remote=True, num_pairs=pairs) for pairs in (1, 4, 8))
    assert one == four == pytest.approx(0.05e-3 + 1 / 2.3)
    assert eight == pytest.approx(0.05e-3 + 8 / 12.5)
    assert PAIRWISE.send_s(1e9, is_remote=False, num_pairs=8) < 0.003
