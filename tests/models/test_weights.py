"""Any block of a parameter, put together from the blocks of tensors that it needs, is that slice of the whole."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi_jax.errors import ModelError
from sarathi_jax.models import ModelConfig, ParamSource, param_sources
from sarathi_jax.models.weights import prefixed_source

CONFIG = ModelConfig(
    family="llama",
    vocab_size=13,
    hidden_size=12,
    intermediate_size=10,
    num_layers=1,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    max_position_embeddings=32,
    has_qkv_bias=True,
    has_out_bias=True,
    has_mlp_bias=True,
)
# The same sizes with q, k and v in one tensor, gate and up in another, and half of a head rotated.
JOINED = replace(CONFIG, family="phi3", rotary_dim=2, has_qkv_bias=False, has_out_bias=False, has_mlp_bias=False)
SOURCES = param_sources(CONFIG) | {f"joined.{path}": source for path, source in param_sources(JOINED).items()}
SPECS = {spec.name: spec.shape for source in SOURCES.values() for spec in source.tensors}
RNG = np.random.default_rng(0)
TENSORS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SPECS.items()}


def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
    assert len(index) == TENSORS[name].ndim, "one slice a dimension"
    return TENSORS[name][index]


def whole(source: ParamSource) -> np.ndarray:
    return source.read_block(read, tuple(slice(0, size) for size in source.shape))


@st.composite
def blocks(draw: st.DrawFn) -> tuple[str, tuple[slice, ...]]:
    path = draw(st.sampled_from(sorted(SOURCES)))
    bounds = [sorted(draw(st.tuples(*2 * [st.integers(0, size)]))) for size in SOURCES[path].shape]
    slices = [slice(low, max(high, low + 1)) if low < size else slice(size - 1, size)
              for (low, high), size in zip(bounds, SOURCES[path].shape, strict=True)]  # fmt: skip
    everything = [draw(st.booleans()) for _ in slices]
    return path, tuple(slice(None) if is_all else each for is_all, each in zip(everything, slices, strict=True))


@given(blocks())
def test_any_block_is_that_slice_of_the_whole(block: tuple[str, tuple[slice, ...]]):
    path, index = block
    np.testing.assert_array_equal(SOURCES[path].read_block(read, index), whole(SOURCES[path])[index])


@pytest.mark.parametrize("path", sorted(SOURCES))
def test_a_whole_parameter_has_its_shape_and_every_element_once(path: str):
    source = SOURCES[path]
    assert whole(source).shape == source.shape
    elements = np.concatenate([TENSORS[spec.name].ravel() for spec in source.tensors])
    np.testing.assert_array_equal(np.sort(whole(source), axis=None), np.sort(elements))


def test_the_fused_projection_keeps_each_kv_heads_queries_key_and_value_together():
    """Query head h reads KV head h // 3, as transformers' repeat_kv has it."""
    kernel = whole(SOURCES["layers.0.attention.qkv.kernel"])  # [E, K, G + 2, D]
    q, k, v = (TENSORS[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv")
    for head in range(6):
        np.testing.assert_array_equal(kernel[:, head // 3, head % 3], q[head * 4 : head * 4 + 4].T)
    for kv in range(2):
        np.testing.assert_array_equal(kernel[:, kv, 3], k[kv * 4 : kv * 4 + 4].T)
        np.testing.assert_array_equal(kernel[:, kv, 4], v[kv * 4 : kv * 4 + 4].T)


def test_joined_tensors_hold_all_queries_then_all_keys_then_all_values_and_all_of_the_gate_before_the_rest():
    """Of a head's four elements, 0 and 1 are the pair that is rotated: they are to be 2 apart, and values are not rotated."""
    kernel, order = whole(SOURCES["joined.layers.0.attention.qkv.kernel"]), [0, 2, 1, 3]
    tensor = TENSORS["model.layers.0.self_attn.qkv_proj.weight"]  # [(6 + 2 + 2) * 4, E]
    heads = tensor.reshape(10, 4, -1)
    for head in range(6):
        np.testing.assert_array_equal(kernel[:, head // 3, head % 3], heads[head, order].T)
    for kv in range(2):
        np.testing.assert_array_equal(kernel[:, kv, 3], heads[6 + kv, order].T)
        np.testing.assert_array_equal(kernel[:, kv, 4], heads[8 + kv].T)
    gate_up = whole(SOURCES["joined.layers.0.mlp.gate_up.kernel"])  # [E, 2, F]
    tensor = TENSORS["model.layers.0.mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(gate_up[:, 0], tensor[:10].T)
    np.testing.assert_array_equal(gate_up[:, 1], tensor[10:].T)


def test_rotated_pairs_are_half_a_head_apart_and_come_first():
    """Of eight elements, 0 to 3 are rotated, in pairs (0, 2) and (1, 3): these go to (0, 4) and (1, 5), and the rest between."""
    config = replace(JOINED, head_dim=8, rotary_dim=4)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    tensor = np.tile(np.arange(8.0), 10)[:, None] * np.ones((1, 12))
    source = param_sources(config)["layers.0.attention.qkv.kernel"]
    kernel = source.read_block(lambda _, index: tensor[index], tuple(slice(0, size) for size in source.shape))
    assert source.tensors[0].name == name
    assert kernel[0, 1, 2].tolist() == kernel[0, 1, 3].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert kernel[0, 1, 4].tolist() == list(range(8))


def test_a_prefix_stands_before_every_tensors_name():
    source = prefixed_source("text.", SOURCES["layers.0.mlp.gate_up.kernel"])
    names = [spec.name for spec in source.tensors]
    assert names == [f"text.model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up")]
    block = source.read_block(
        lambda name, index: read(name.removeprefix("text."), index), (slice(3, 5), slice(0, 2), slice(0, 10))
    )
    np.testing.assert_array_equal(block, whole(SOURCES["layers.0.mlp.gate_up.kernel"])[3:5])


def test_the_output_projection_takes_heads_in_order():
    kernel = whole(SOURCES["layers.0.attention.out.kernel"])  # [H, D, E]
    tensor = TENSORS["model.layers.0.self_attn.o_proj.weight"]
    for head in range(6):
        np.testing.assert_array_equal(kernel[head], tensor[:, head * 4 : head * 4 + 4].T)


def test_a_block_of_one_kv_head_reads_nothing_of_others():
    asked: dict[str, tuple[slice, ...]] = {}

    def watch(name: str, index: tuple[slice, ...]) -> np.ndarray:
        asked[name.split(".")[-2]] = index
        return read(name, index)

    index = (slice(None), slice(1, 2), slice(None), slice(None))
    SOURCES["layers.0.attention.qkv.kernel"].read_block(watch, index)
    rows = {name: index[0].indices(24 if name == "q_proj" else 8)[:2] for name, index in asked.items()}
    assert rows == {"q_proj": (12, 24), "k_proj": (4, 8), "v_proj": (4, 8)}


def test_a_block_of_one_kv_head_reads_nothing_of_others_from_a_joined_tensor():
    asked: list[tuple[int, int]] = []

    def watch(name: str, index: tuple[slice, ...]) -> np.ndarray:
        asked.append(index[0].indices(40)[:2])
        return read(name, index)

    index = (slice(None), slice(1, 2), slice(None), slice(None))
    SOURCES["joined.layers.0.attention.qkv.kernel"].read_block(watch, index)
    assert asked == [(12, 24), (28, 32), (36, 40)]


def test_an_unknown_family_lists_the_known_ones():
    config = ModelConfig(
        family="gpt9",
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        max_position_embeddings=8,
    )
    with pytest.raises(
        ModelError, match=r"The family must be one of llama, mistral, .*, got 'gpt9': choose one of these"
    ):
        param_sources(config)
