"""The data file: what is in it, where it is from, and words for what is not."""

import json
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.hardware import DATA, default_system, device_names, load_device, load_host, load_system


def groups(value: Any) -> list[dict[str, Any]]:
    """Every object that says where its numbers are from."""
    if not isinstance(value, dict):
        return []
    return ([value] if "source" in value else []) + [each for part in value.values() for each in groups(part)]


def test_every_number_has_a_source_that_is_listed() -> None:
    data = json.loads(DATA.read_text())
    found = groups(data)
    assert len(found) > 30
    assert {group["basis"] for group in found} == {"fitted", "estimate", "datasheet"}
    assert {group["source"] for group in found} == set(data["sources"])


def test_the_devices_that_are_promised_are_there() -> None:
    assert device_names() == ("a100-40g", "a100-80g", "h100", "h200", "a40")
    h200 = load_device("h200")
    assert (h200.memory_bytes // 2**30, h200.peak_bytes_per_s) == (140, 4.8e12)


@pytest.mark.parametrize("name", ["a100-40g", "h100", "h200"])
def test_estimates_are_the_share_that_an_a100_reaches(name: str) -> None:
    fitted, device = load_device("a100-80g"), load_device(name)
    bandwidth = device.peak_bytes_per_s / fitted.peak_bytes_per_s
    compute = device.peak_flop_per_s / fitted.peak_flop_per_s
    for group in ("linear", "elementwise", "attention"):
        assert device.bases[group] == "estimate"
        rates, known = getattr(device, group), getattr(fitted, group)
        assert rates.bytes_per_s == pytest.approx(known.bytes_per_s * bandwidth, rel=0.005)
    assert device.linear.flop_per_s == pytest.approx(fitted.linear.flop_per_s * compute, rel=0.005)
    assert device.attention.flop_per_s == pytest.approx(fitted.attention.flop_per_s * compute, rel=0.005)


@pytest.mark.parametrize("name", device_names())
def test_nothing_is_faster_than_its_datasheet(name: str) -> None:
    device = load_device(name)
    assert max(device.linear.bytes_per_s, device.attention.bytes_per_s) < device.peak_bytes_per_s
    assert max(device.linear.flop_per_s, device.attention.flop_per_s) < device.peak_flop_per_s


def test_the_system_is_the_one_with_the_smallest_hosts_that_do() -> None:
    assert default_system("a100-80g", 4).name == "pairwise-a100"
    assert default_system("a100-80g", 8).name == "dgx-a100"
    assert default_system("a40", 4).name == "pairwise-a40"
    assert default_system("h200", 1).name == "dgx-h100"


@pytest.mark.parametrize(("load", "kind"), [(load_device, "device"), (load_system, "system"), (load_host, "host")])
def test_an_unknown_name_lists_the_known_ones(load: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"{kind} must be one of \S+, .*, got 'v100': choose"):
        load("v100")


def test_hosts_that_nobody_builds_are_refused() -> None:
    with pytest.raises(ConfigError, match="A host must have at most 8 h100, got 16: spread them"):
        default_system("h100", 16)
