"""Parameters as the safetensors library wrote their tensors, on the devices they were asked for; all faults in one
error."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from sarathi_jax.checkpoints.loader import dummy_params, load_params
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import ModelError, ModelNotFoundError

type Tensors = dict[str, np.ndarray]
EMBED, MLP, KV, GROUP, DIM, VOCAB = 24, 40, 4, 2, 4, 32
HEADS = KV * GROUP
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": EMBED,
    "intermediate_size": MLP,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": DIM,
    "max_position_embeddings": 64,
    "attention_bias": True,
    "mlp_bias": True,
}
LINEAR = {
    "self_attn.q_proj": (HEADS * DIM, EMBED),
    "self_attn.k_proj": (KV * DIM, EMBED),
    "self_attn.v_proj": (KV * DIM, EMBED),
    "self_attn.o_proj": (EMBED, HEADS * DIM),
    "mlp.gate_proj": (MLP, EMBED),
    "mlp.up_proj": (MLP, EMBED),
    "mlp.down_proj": (EMBED, MLP),
}
SPECS = {
    "embedding.embedding": P("tensor"),
    "head.kernel": P(None, "tensor"),
    "attention.qkv.kernel": P(None, "tensor"),
    "attention.qkv.bias": P("tensor"),
    "attention.out.kernel": P("tensor"),
    "mlp.gate_up.kernel": P("data", None, "tensor"),
    "mlp.gate_up.bias": P(None, "tensor"),
    "mlp.down.kernel": P("tensor", "data"),
}


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    """What a Llama of CONFIG is made of, under Hugging Face's names, with random values."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, EMBED), "model.norm.weight": (EMBED,)}
    shapes["lm_head.weight"] = (VOCAB, EMBED)
    for layer in ("model.layers.0", "model.layers.1"):
        shapes |= {f"{layer}.{name}.weight": (EMBED,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}.{name}.weight": shape for name, shape in LINEAR.items()}
        shapes |= {f"{layer}.{name}.bias": shape[:1] for name, shape in LINEAR.items()}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def expected(tensors: Tensors) -> Tensors:
    """The parameters, put together here from whole tensors."""
    params = {"embedding.embedding": tensors["model.embed_tokens.weight"], "norm.scale": tensors["model.norm.weight"]}
    params["head.kernel"] = tensors["lm_head.weight"].T
    for layer in range(2):
        params |= {f"layers.{layer}.{path}": value for path, value in expected_layer(tensors, layer).items()}
    return params


def expected_layer(tensors: Tensors, layer: int) -> Tensors:
    prefix = f"model.layers.{layer}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    weights = [own[f"self_attn.{name}_proj.weight"].T.reshape(EMBED, KV, -1, DIM) for name in "qkv"]
    biases = [own[f"self_attn.{name}_proj.bias"].reshape(KV, -1, DIM) for name in "qkv"]
    return {
        "attention_norm.scale": own["input_layernorm.weight"],
        "mlp_norm.scale": own["post_attention_layernorm.weight"],
        "attention.qkv.kernel": np.concatenate(weights, axis=2),
        "attention.qkv.bias": np.concatenate(biases, axis=1),
        "attention.out.kernel": own["self_attn.o_proj.weight"].T.reshape(HEADS, DIM, EMBED),
        "attention.out.bias": own["self_attn.o_proj.bias"],
        "mlp.gate_up.kernel": np.stack([own["mlp.gate_proj.weight"].T, own["mlp.up_proj.weight"].T], axis=1),
        "mlp.gate_up.bias": np.stack([own["mlp.gate_proj.bias"], own["mlp.up_proj.bias"]]),
        "mlp.down.kernel": own["mlp.down_proj.weight"].T,
        "mlp.down.bias": own["mlp.down_proj.bias"],
    }


def structs(expected: Tensors, dtype: Any = np.float32, mesh: Mesh | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters to load; with a mesh, sharded by SPECS (the rest is on every device)."""
    specs = {path: SPECS.get(path.split(".", 2)[-1] if "layers" in path else path, P()) for path in expected}
    shardings = {path: NamedSharding(mesh, spec) if mesh else None for path, spec in specs.items()}
    return {
        path: jax.ShapeDtypeStruct(value.shape, dtype, sharding=shardings[path]) for path, value in expected.items()
    }


def write(folder: Path, tensors: Tensors, **more: Any) -> Path:
    """A model folder of one file."""
    (folder / "config.json").write_text(json.dumps(CONFIG | more))
    save_file(tensors, folder / "model.safetensors")
    return folder


def load(folder: Path, parameters: Any, **options: Any) -> dict[str, jax.Array]:
    return load_params(folder, read_model_config(folder), parameters, **options)


def test_every_parameter_is_made_of_its_tensors(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    params = load(write(tmp_path, tensors), structs(expected))
    assert list(params) == list(expected)
    for path, value in expected.items():
        assert params[path].devices() == {jax.devices()[0]}
        np.testing.assert_array_equal(params[path], value, strict=True, err_msg=path)


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (8, 1)])
def test_every_device_gets_its_shard(
    tmp_path: Path, tensors: Tensors, expected: Tensors, shape: tuple[int, int]
) -> None:
    mesh = Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("data", "tensor"))
    wanted = structs(expected, mesh=mesh)
    for path, array in load(write(tmp_path, tensors), wanted).items():
        assert array.sharding == wanted[path].sharding
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[path][shard.index], err_msg=path)


def test_several_files_are_one_model(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    weight_map = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for path, array in load(tmp_path, structs(expected)).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16"), ("float64", "float32")],
)
def test_values_are_rounded_once_to_the_dtype_asked_for(
    tmp_path: Path, tensors: Tensors, expected: Tensors, stored: str, asked: str
) -> None:
    dtypes = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    stored_dtype, asked_dtype = (dtypes.get(name, np.dtype(name)) for name in (stored, asked))
    write(tmp_path, {name: value.astype(stored_dtype) for name, value in tensors.items()})
    for path, array in load(tmp_path, structs(expected, asked_dtype)).items():
        rounded = expected[path].astype(stored_dtype).astype(asked_dtype)
        np.testing.assert_array_equal(array, rounded, strict=True, err_msg=path)


def test_a_value_that_the_dtype_cannot_hold_is_named(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    large = {**tensors, "model.norm.weight": np.full(EMBED, 1e5, np.float32)}
    with pytest.raises(ModelError, match=r"norm.scale must fit into float16, got values up to 100000: load it as bf"):
        load(write(tmp_path, large), structs(expected, np.float16))


def test_arrays_outlive_their_file(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    path = write(tmp_path, tensors) / "model.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    padding = b" " * (-start % 64)  # aligned so that jax's CPU device may take the mapped file for the array itself
    path.write_bytes((start - 8 + len(padding)).to_bytes(8, "little") + content[8:start] + padding + content[start:])
    params = load(tmp_path, structs(expected))
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for name, value in expected.items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)


def test_a_tied_head_and_old_buffers_are_passed_over(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    write(tmp_path, tensors | buffer | head, tie_word_embeddings=True)
    wanted = {path: value for path, value in expected.items() if path != "head.kernel"}
    assert load(tmp_path, structs(wanted)).keys() == wanted.keys()


def test_a_tied_head_with_values_of_its_own_is_refused(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    """As in transformers 5, which then doesn't tie it."""
    embedding = tensors["model.embed_tokens.weight"]
    for head in (embedding[1:], embedding + np.eye(VOCAB, EMBED, k=3 - VOCAB, dtype=np.float32)):
        write(tmp_path, tensors | {"lm_head.weight": head}, tie_word_embeddings=True)
        with pytest.raises(ModelError, match=r"lm_head\.weight must be model\.embed_tokens\.weight, .*: set tie_word_"):
            load(tmp_path, structs({path: value for path, value in expected.items() if path != "head.kernel"}))


ENDING = "fetch the folder again, or correct config.json"
FAULTS: list[Any] = [
    ({"model.norm.weight": None}, r"got no model.norm.weight\[24\]: "),
    ({"lm_head.weight": None}, r"got no lm_head.weight\[32, 24\]: "),
    ({"model.norm.weight": (23,)}, r"got model.norm.weight\[23\] in place of \[24\]: "),
    ({"model.embed_tokens.weight": (24, 32)}, r"got model.embed_tokens.weight\[24, 32\] in place of \[32, 24\]: "),
    ({"q_norm.weight": (24,)}, r"got extra q_norm.weight\[24\]: "),
    (
        {"a": (1,), "model.norm.weight": None, "lm_head.weight": (2,)},
        r"got no model.norm.weight\[24\]; lm_head.weight\[2\] in place of \[32, 24\]; extra a\[1\]: ",
    ),
    (dict.fromkeys("gfedcba", (1,)), r"got extra a\[1\]; extra b\[1\]; .*; extra e\[1\]; and 2 more: "),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_all_faults_are_listed_in_one_error(
    tmp_path: Path, tensors: Tensors, expected: Tensors, changes: dict[str, Any], message: str
) -> None:
    changed = tensors | {name: np.ones(shape, np.float32) for name, shape in changes.items() if shape}
    write(tmp_path, {name: value for name, value in changed.items() if changes.get(name, True)})
    with pytest.raises(ModelError, match=f"weights must be those that config.json describes, {message}{ENDING}"):
        load(tmp_path, structs(expected))


def test_weights_that_are_no_floats_are_named(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    write(tmp_path, tensors | {"model.norm.weight": np.ones(EMBED, np.int8)})
    with pytest.raises(
        ModelError, match=r"got model.norm.weight of int8 in place of float64, float32, bfloat16, float"
    ):
        load(tmp_path, structs(expected))


def test_a_truncated_file_is_named_with_its_tensors(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    path = write(tmp_path, tensors) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8000])
    with pytest.raises(ModelError, match=rf"^{path}: tensors '.*' and \d+ more must end inside the file, got 8000 byt"):
        load(tmp_path, structs(expected))


def test_a_folder_without_weights_is_named(tmp_path: Path, tensors: Tensors, expected: Tensors) -> None:
    (write(tmp_path, tensors) / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"must hold \*\.safetensors, got none: .* or use load_format='dummy'"):
        load(tmp_path, structs(expected))


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_counts_bytes_and_can_be_left_out(
    tmp_path: Path, tensors: Tensors, expected: Tensors, capfd: pytest.CaptureFixture[str], progress: bool
) -> None:
    load(write(tmp_path, tensors), structs(expected), progress=progress)
    assert sum(value.nbytes for value in expected.values()) == 49632
    shown = capfd.readouterr().err
    assert "weights: 100%" in shown and "49.6k/49.6k" in shown if progress else shown == ""


def test_dummy_weights_have_the_shapes_and_the_spread_of_weights(expected: Tensors) -> None:
    wanted = structs(expected, ml_dtypes.bfloat16)
    params = dummy_params(wanted, seed=3)
    assert list(params) == list(wanted)
    for path, array in params.items():
        assert (array.shape, array.dtype) == (wanted[path].shape, wanted[path].dtype)
        if path.endswith("norm.scale"):
            assert (np.asarray(array) == 1).all()
        else:
            assert abs(float(np.asarray(array, np.float32).std()) - 0.02) < 0.02 * 4 / array.size**0.5


def test_dummy_weights_depend_on_seed_and_path_and_not_on_the_sharding(expected: Tensors) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))
    paths = [f"layers.{layer}.mlp.down.kernel" for layer in (0, 1)]
    plain, sharded = ({path: structs(expected, mesh=each)[path] for path in paths} for each in (None, mesh))
    one, same = dummy_params(plain, 7), dummy_params(sharded, 7)
    for path in paths:
        assert same[path].sharding == sharded[path].sharding
        np.testing.assert_array_equal(one[path], same[path])
    first, second = (np.asarray(one[path]) for path in paths)
    assert (first == second).mean() < 0.01
    assert (first == np.asarray(dummy_params(plain, 8)[paths[0]])).mean() < 0.01
