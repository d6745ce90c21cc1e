"""GPUs that are only described: meshes that can't be, and words for why."""

from importlib.util import find_spec

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.lab import described_gpus
from sarathi_jax.lab.described_gpus import DESCRIBED_GPUS, described_mesh, target_config
from sarathi_jax.simulation.hardware import device_names, load_device

needs_plugin = pytest.mark.skipif(not find_spec("jax_cuda12_plugin"), reason="needs the aot extra")


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="one of a100-40g, a100-80g, h100, h200, a40, got 'v100'"):
        described_mesh("v100", {"tensor": 1})


@needs_plugin
def test_a_mesh_fills_whole_hosts() -> None:
    with pytest.raises(ConfigError, match="fill whole hosts of 8 GPUs, got 12"):
        described_mesh("h100", {"tensor": 12})


@needs_plugin
def test_hosts_are_as_large_as_they_are_said_to_be() -> None:
    """Two hosts of four: devices 0 to 3 are one process, 4 to 7 another."""
    devices = described_mesh("a100-80g", {"tensor": 8}, 4).devices.flat
    assert [device.process_index for device in devices] == [0] * 4 + [1] * 4
    with pytest.raises(ConfigError, match="fill whole hosts of 4 GPUs, got 6"):
        described_mesh("a100-80g", {"tensor": 6}, 4)


def test_the_cost_model_knows_the_same_gpus() -> None:
    assert set(DESCRIBED_GPUS) == set(device_names())
    for name, gpu in DESCRIBED_GPUS.items():
        assert load_device(name).memory_bytes == gpu.memory
        assert load_device(name).peak_bytes_per_s == pytest.approx(gpu.memory_bandwidth, rel=1e-3)


def test_a_machine_without_the_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described_gpus, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sarathi-jax\[aot\]'"):
        described_mesh("h100", {"tensor": 1})


def test_what_differs_between_gpus_is_in_their_descriptions() -> None:
    texts = {name: target_config(gpu) for name, gpu in DESCRIBED_GPUS.items()}
    assert "major: 8 minor: 0 feature_extension: NONE" in texts["a100-80g"]
    assert "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES" in texts["h200"]
    assert len(set(texts.values())) == 5
