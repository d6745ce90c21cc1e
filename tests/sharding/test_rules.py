"""Rules from logical to mesh axes, their refusals, and meshes."""

from pathlib import Path

import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from sarathi_jax.errors import ConfigError
from sarathi_jax.models import ModelConfig
from sarathi_jax.sharding.mesh import make_mesh, replica_meshes
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON, Rules, find_rules, named_sharding

CONFIG = ModelConfig(
    family="llama",
    vocab_size=24,
    hidden_size=16,
    intermediate_size=20,
    num_layers=1,
    num_heads=8,
    num_kv_heads=4,
    head_dim=4,
    max_position_embeddings=32,
    has_qkv_bias=True,
    has_out_bias=True,
)
MESH = make_mesh({"tensor": 4})


def specs(rules: Rules) -> dict[str, P]:
    state = abstract_model(CONFIG, jnp.dtype("float32"), MESH, rules)
    return {path: spec.sharding.spec for path, spec in state.parameters.items() if spec.sharding}


def test_megatron_cuts_columns_then_rows():
    got = specs(dict(MEGATRON))
    layer = "layers.0."
    assert got["embedding.embedding"] == P("tensor", None)
    assert got["head.kernel"] == P(None, "tensor")
    assert got[layer + "attention.qkv.kernel"] == P(None, "tensor", None, None)
    assert got[layer + "attention.qkv.bias"] == P("tensor", None, None)
    assert got[layer + "attention.out.kernel"] == P("tensor", None, None)
    assert got[layer + "attention.out.bias"] == P(None)
    assert got[layer + "mlp.gate_up.kernel"] == P(None, None, "tensor")
    assert got[layer + "mlp.down.kernel"] == P("tensor", None)
    assert got["norm.scale"] == got[layer + "mlp_norm.scale"] == P(None)


def test_changing_the_table_changes_the_cut():
    got = specs({**MEGATRON, "vocab": None, "embed": "tensor", "heads": None, "kv_heads": None, "mlp": None})
    assert got["embedding.embedding"] == P(None, "tensor")
    assert got["layers.0.mlp.down.kernel"] == P(None, "tensor")


def test_bytes_are_those_of_one_device():
    whole = abstract_model(CONFIG, jnp.dtype("float32"), make_mesh({}), MEGATRON)
    cut = abstract_model(CONFIG, jnp.dtype("float32"), MESH, MEGATRON)
    assert whole.num_bytes == 4 * whole.num_parameters == 4 * cut.num_parameters
    replicated = 4 * (3 * 16 + 16)  # norms and the output bias
    assert cut.num_bytes == (whole.num_bytes - replicated) // 4 + replicated


def test_an_axis_that_the_mesh_has_not_cuts_nothing():
    assert named_sharding("w", (6,), ("mlp",), MESH, {"mlp": "expert"}).spec == P(None)


def test_a_logical_axis_without_a_rule_is_named():
    with pytest.raises(ConfigError, match="w: logical axis 'mlp' must be in the rules, got only embed, heads: add it"):
        named_sharding("w", (8, 8), ("embed", "mlp"), MESH, {"embed": None, "heads": "tensor"})


def test_two_dimensions_on_one_mesh_axis_are_refused():
    rules = {"embed": "tensor", "mlp": "tensor"}
    with pytest.raises(ConfigError, match="w: a mesh axis can cut one dimension only, got 'tensor' twice: change the"):
        named_sharding("w", (8, 8), ("embed", "mlp"), MESH, rules)


def test_a_size_that_does_not_divide_is_named():
    with pytest.raises(ConfigError, match="w: mlp=10 must be a multiple of the mesh's tensor=4: choose a mesh that"):
        named_sharding("w", (8, 10), ("embed", "mlp"), MESH, MEGATRON)


def test_a_model_that_does_not_divide_is_refused_by_parameter():
    rules = {**MEGATRON, "kv_heads": None}
    with pytest.raises(ConfigError, match=r"embedding.embedding: vocab=24 must be a multiple of the mesh's tensor=5"):
        abstract_model(CONFIG, jnp.dtype("float32"), make_mesh({"tensor": 5}), rules)


def test_a_mesh_has_a_tensor_axis_whatever_is_asked_for():
    assert dict(make_mesh({}).shape) == {"tensor": 1}
    assert dict(make_mesh({"tensor": 2}).shape) == {"tensor": 2}


def test_too_large_a_mesh_is_refused():
    with pytest.raises(ConfigError, match=r"mesh tensor=9 needs 9 devices, got 8 \(cpu\): make the mesh smaller"):
        make_mesh({"tensor": 9})


def test_several_mesh_axes_cut_one_dimension() -> None:
    mesh = make_mesh({"expert": 2, "tensor": 4})
    assert named_sharding("w", (16, 8), ("mlp", "embed"), mesh, MEGATRON).spec == P(("expert", "tensor"), None)
    with pytest.raises(ConfigError, match="w: mlp=12 must be a multiple of the mesh's expert=2 x tensor=4"):
        named_sharding("w", (12, 8), ("mlp", "embed"), mesh, MEGATRON)
    with pytest.raises(ConfigError, match="w: a mesh axis can cut one dimension only, got 'tensor' twice"):
        named_sharding("w", (8, 8), ("mlp", "expert_mlp"), mesh, MEGATRON)


def test_the_axes_of_a_mesh_come_in_their_order() -> None:
    mesh = make_mesh({"tensor": 2, "stage": 2, "data": 2})
    assert dict(mesh.shape) == {"data": 2, "stage": 2, "tensor": 2}
    first, second = replica_meshes(mesh)
    assert dict(first.shape) == {"stage": 2, "tensor": 2}
    assert [device.id for device in second.devices.flat] == [4, 5, 6, 7]


def test_rules_are_found_by_name_or_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('mlp = "tensor"\nkv_heads = ["expert"]\nvocab = []\n')
    rules = find_rules(str(path))
    assert (rules["mlp"], rules["kv_heads"], rules["vocab"], rules["heads"]) == (
        "tensor",
        ["expert"],
        [],
        MEGATRON["heads"],
    )
    assert find_rules("megatron") is MEGATRON
    assert find_rules({"vocab": None}) == {**MEGATRON, "vocab": None}
    with pytest.raises(ConfigError, match=r"A logical axis must be one of vocab, embed, .*, got 'vocabulary'"):
        find_rules({"vocabulary": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpl = []", "A logical axis must be one of vocab, embed, .*, got 'mpl': correct its name"),
        ('mlp = "stage"', "mlp must be cut over expert or tensor, over both, or not at all, got 'stage'"),
        ('mlp = ["tensor", "tensor"]', r"mlp must be cut over .*, got \['tensor', 'tensor'\]"),
        ("mlp = 3", "mlp must be cut over .*, got 3"),
        ("mlp = [[]]", r"mlp must be cut over .*, got \[\[\]\]"),
        ("mlp = [3]", r"mlp must be cut over .*, got \[3\]"),
        ("mlp = ", r"rules must be a TOML file, got .*mine.toml \("),
    ],
)
def test_wrong_rules_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_rules(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("megatrom", "rules must be one of megatron, replicated, sequence, or a .toml file, got 'megatrom'"),
        ("none/mine.toml", "rules must be a TOML file, got none/mine.toml"),
    ],
)
def test_rules_that_are_not_there_are_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_rules(name)
