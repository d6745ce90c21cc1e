"""Devices, the links between them and the host code of engines, as numbers: `hardware.json` read into dataclasses.

Where a number comes from stands beside it in the file (`basis`, `source`), and in `Device.bases`. Units: seconds, bytes, floating-point operations.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sarathi_jax.errors import ConfigError

DATA = Path(__file__).with_name("hardware.json")
RATES = ("linear", "elementwise", "attention")


@dataclass(frozen=True, slots=True)
class LinearRates:
    """Weight products: launch_s a product, and the blend of memory and compute time by `exponent` (see `cost_model`)."""

    bytes_per_s: float
    flop_per_s: float
    exponent: float
    launch_s: float


@dataclass(frozen=True, slots=True)
class ElementwiseRates:
    """Norms, rotation, activation, residual sums of one layer: at least floor_s together."""

    bytes_per_s: float
    floor_s: float


@dataclass(frozen=True, slots=True)
class AttentionRates:
    """Attention over paged KV: bytes_per_s bounds decodes, flop_per_s chunks."""

    bytes_per_s: float
    flop_per_s: float
    launch_s: float


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of GPU. memory_bytes: all of it. peak_*: the datasheet's, 16-bit numbers without sparsity. bases: group of rates -> "fitted" or "estimate"."""

    name: str
    memory_bytes: int
    peak_bytes_per_s: float
    peak_flop_per_s: float
    linear: LinearRates
    elementwise: ElementwiseRates
    attention: AttentionRates
    bases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """What moving bytes takes: alpha_s + bytes / bytes_per_s."""

    alpha_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: float) -> float:
        return self.alpha_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Network:
    """Links between hosts. ring_*: of all-reduces, a step of the ring and the bytes that cross, by GPU of the group and by host at most; send_*: of one pair, and of a host at most."""

    name: str
    about: str
    ring_step_s: float
    ring_bytes_per_s_per_gpu: float
    ring_bytes_per_s_per_host: float
    send: Line
    send_bytes_per_s_per_host: float


@dataclass(frozen=True, slots=True)
class System:
    """Hosts of one kind and their network. all_reduce: GPUs of one host -> line over the message's bytes. is_switched: any GPU of a host reaches any other alike."""

    name: str
    about: str
    devices: tuple[str, ...]
    max_gpus_per_host: int
    is_switched: bool
    all_reduce: Mapping[int, Line]
    send: Line
    network: Network
    launch_s: float
    bases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HostCost:
    """What an engine's host code takes a step. is_overlapped: it runs while the device does, and only the longer of the two counts."""

    name: str
    base_s: float
    per_row_s: float
    is_overlapped: bool

    def seconds(self, num_rows: int) -> float:
        return self.base_s + self.per_row_s * num_rows


@cache
def _data() -> dict[str, Any]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def device_names() -> tuple[str, ...]:
    return tuple(_data()["devices"])


def load_device(name: str) -> Device:
    """Raises: ConfigError if the file has no such device."""
    entry = _entry("devices", "device", name)
    return Device(
        name=name,
        memory_bytes=entry["memory"]["bytes"],
        peak_bytes_per_s=entry["peak"]["bytes_per_s"],
        peak_flop_per_s=entry["peak"]["flop_per_s"],
        linear=LinearRates(**_numbers(entry["linear"])),
        elementwise=ElementwiseRates(**_numbers(entry["elementwise"])),
        attention=AttentionRates(**_numbers(entry["attention"])),
        bases={group: entry[group]["basis"] for group in RATES},
    )


def load_system(name: str) -> System:
    """Raises: ConfigError if the file has no such system."""
    entry = _entry("systems", "system", name)
    all_reduce = {int(size): Line(**line) for size, line in _numbers(entry["all_reduce"]).items()}
    network = _data()["networks"][entry["network"]]
    bases = {"all_reduce": entry["all_reduce"]["basis"], "send": entry["send"]["basis"]}
    return System(
        name=name,
        about=entry["about"],
        devices=tuple(entry["devices"]),
        max_gpus_per_host=entry["max_gpus_per_host"],
        is_switched=entry["is_switched"],
        all_reduce=all_reduce,
        send=Line(**_numbers(entry["send"])),
        network=_network(entry["network"], network),
        launch_s=_data()["collective_launch"]["seconds"],
        bases=bases | {"network": network["ring"]["basis"]},
    )


def default_system(device: str, gpus_per_host: int) -> System:
    """The system with the smallest hosts that hold so many of these devices.

    Raises: ConfigError if the device is unknown, or no system of it has hosts so large.
    """
    load_device(device)
    systems = [load_system(name) for name in _data()["systems"]]
    fitting = [each for each in systems if device in each.devices]
    largest = max(each.max_gpus_per_host for each in fitting)
    if gpus_per_host > largest:
        raise ConfigError(
            f"A host must have at most {largest} {device}, got {gpus_per_host}: spread them over more hosts."
        )
    return min(
        (each for each in fitting if each.max_gpus_per_host >= gpus_per_host), key=lambda each: each.max_gpus_per_host
    )


def host_names() -> tuple[str, ...]:
    return tuple(_data()["hosts"])


def load_host(name: str) -> HostCost:
    """Of an engine's host code, by the engine's name. Raises: ConfigError if the file has none of that name."""
    return HostCost(name, **_numbers(_entry("hosts", "host", name)))


def _network(name: str, entry: Mapping[str, Any]) -> Network:
    ring, send = _numbers(entry["ring"]), _numbers(entry["send"])
    return Network(
        name=name,
        about=entry["about"],
        ring_step_s=ring["step_s"],
        ring_bytes_per_s_per_gpu=ring["bytes_per_s_per_gpu"],
        ring_bytes_per_s_per_host=ring["bytes_per_s_per_host"],
        send=Line(send["alpha_s"], send["bytes_per_s"]),
        send_bytes_per_s_per_host=send["bytes_per_s_per_host"],
    )


def _entry(section: str, kind: str, name: str) -> dict[str, Any]:
    entries = _data()[section]
    if name not in entries:
        raise ConfigError(f"{kind} must be one of {', '.join(entries)}, got {name!r}: choose one of these.")
    return entries[name]


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("basis", "source")}
