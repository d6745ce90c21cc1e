"""Layouts for meshes: KV heads repeated, layers stacked over stages, block by block from the tensors of a checkpoint."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sarathi_jax.errors import ConfigError
from sarathi_jax.models import ModelConfig, param_sources
from sarathi_jax.models.config import MoEConfig, RopeConfig
from sarathi_jax.models.layout import Layout, lay_out
from sarathi_jax.models.weights import Index
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model, choose_layout
from sarathi_jax.sharding.rules import MEGATRON, REPLICATED

CONFIG = ModelConfig(
    family="llama",
    vocab_size=24,
    hidden_size=6,
    intermediate_size=8,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=2,
    max_position_embeddings=32,
    has_qkv_bias=True,
)


def read_tensor(name: str, index: Index) -> np.ndarray:
    """Every number of a checkpoint is another one."""
    shape = {spec.name: spec.shape for source in param_sources(CONFIG).values() for spec in source.tensors}[name]
    start = sum(map(ord, name)) * 1000
    return np.arange(start, start + np.prod(shape)).reshape(shape)[index]


def read(layout: Layout, path: str, *index: Any) -> np.ndarray:
    source = lay_out(CONFIG, param_sources(CONFIG), layout)[path]
    whole = tuple(slice(0, size) for size in source.shape)
    return source.read_block(read_tensor, (*index, *whole[len(index) :]))


def test_a_repeated_kv_head_has_its_queries_dealt_out() -> None:
    """K 2 and G 4 become K 4 and G 2: heads 0 and 1 are copies, with queries 0, 1 and 2, 3 of the first head."""
    plain, repeated = (read(Layout(1, repeats), "layers.1.attention.qkv.kernel") for repeats in (1, 2))
    assert plain.shape == (6, 2, 6, 2)
    assert repeated.shape == (6, 4, 4, 2)
    np.testing.assert_array_equal(repeated[:, 1, :2], plain[:, 0, 2:4])
    np.testing.assert_array_equal(repeated[:, 2, :2], plain[:, 1, 0:2])
    for head in range(4):
        np.testing.assert_array_equal(repeated[:, head, 2:], plain[:, head // 2, 4:])


def test_a_bias_is_repeated_too_and_other_parameters_stay() -> None:
    assert read(Layout(1, 4), "layers.0.attention.qkv.bias").shape == (8, 3, 2)
    out = "layers.0.attention.out.kernel"
    np.testing.assert_array_equal(read(Layout(1, 4), out), read(Layout(), out))


def test_any_block_of_a_repeated_parameter_is_that_part_of_it() -> None:
    path, index = "layers.2.attention.qkv.kernel", (slice(1, 5), slice(1, 3), slice(1, 4), slice(1, 2))
    np.testing.assert_array_equal(read(Layout(1, 2), path, *index), read(Layout(1, 2), path)[index])


def test_layers_are_stacked_over_stages() -> None:
    """Four layers on two stages: slot 1 holds layers 1 and 3."""
    path = "mlp.down.kernel"
    stacked = read(Layout(2), f"layers.1.{path}")
    assert stacked.shape == (2, 8, 6)
    for stage, layer in enumerate((1, 3)):
        np.testing.assert_array_equal(stacked[stage], read(Layout(), f"layers.{layer}.{path}"))
    np.testing.assert_array_equal(read(Layout(2), f"layers.1.{path}", slice(1, 2)), stacked[1:])
    assert "layers.2.mlp.down.kernel" not in lay_out(CONFIG, param_sources(CONFIG), Layout(2))


def test_the_state_of_a_pipeline_is_cut_over_stages_and_tensors() -> None:
    state = abstract_model(CONFIG, jnp.dtype("float32"), make_mesh({"stage": 2, "tensor": 4}), MEGATRON)
    qkv = state.parameters["layers.1.attention.qkv.kernel"]
    assert (state.layout, state.config.num_kv_heads, state.num_stage_layers) == (Layout(2, 2), 4, 2)
    assert qkv.shape == (2, 6, 4, 4, 2)
    assert qkv.sharding and qkv.sharding.spec == P("stage", None, "tensor", None, None)
    assert state.parameters["embedding.embedding"].shape == (24, 6)
    assert state.num_kv_parts == 8


@pytest.mark.parametrize(("tensor", "repeats"), [(1, 1), (2, 1), (4, 2), (8, 4)])
def test_kv_heads_are_repeated_as_often_as_devices_need(tensor: int, repeats: int) -> None:
    assert choose_layout(CONFIG, make_mesh({"tensor": tensor}), MEGATRON) == Layout(1, repeats)


def test_without_a_cut_of_kv_heads_none_is_repeated() -> None:
    assert choose_layout(CONFIG, make_mesh({"tensor": 8}), REPLICATED) == Layout()


@pytest.mark.parametrize(("num_kv", "tensor"), [(2, 3), (4, 6), (8, 3)])
def test_kv_heads_that_can_not_be_dealt_out_are_named(num_kv: int, tensor: int) -> None:
    config = replace(CONFIG, num_kv_heads=num_kv)
    with pytest.raises(
        ConfigError, match=rf"num_kv_heads={num_kv} must be a multiple of the mesh's tensor={tensor}, or"
    ):
        choose_layout(config, make_mesh({"tensor": tensor}), MEGATRON)


def test_layers_that_do_not_divide_are_named() -> None:
    with pytest.raises(ConfigError, match="4 layers must be a multiple of the mesh's stage=3"):
        Layout(3).stage(CONFIG)


@pytest.mark.parametrize(
    "more",
    [
        {"sliding_window": 4, "window_layers": (0, 1)},
        {"sliding_window": 4, "window_layers": (0, 1), "local_rope": RopeConfig(theta=5.0)},
        {"moe": MoEConfig(num_experts=2, num_experts_per_token=1, expert_size=4, dense_layers=(0,))},
    ],
)
def test_stages_have_to_be_alike(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Stages must be alike, got layer 2 of 4 unlike layer 0"):
        Layout(2).stage(replace(CONFIG, **more))


def test_a_stage_keeps_the_kinds_of_its_layers() -> None:
    moe = MoEConfig(num_experts=2, num_experts_per_token=1, expert_size=4, dense_layers=(1, 3))
    stage = Layout(2).stage(replace(CONFIG, sliding_window=4, window_layers=(0, 2), moe=moe))
    assert (stage.num_layers, stage.window(0), stage.window(1)) == (2, 4, None)
    assert [stage.is_moe_layer(index) for index in range(2)] == [True, False]
    everywhere = Layout(2).stage(replace(CONFIG, sliding_window=4, window_layers=(0, 1, 2, 3)))
    assert everywhere.window_layers == (0, 1)
