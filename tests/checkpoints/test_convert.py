"""A converted folder is the same model, bit for bit, on any mesh and to Orbax itself; whatever goes wrong, nothing half-written is left behind."""

import json
import resource
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from sarathi_jax.checkpoints import convert as conversion
from sarathi_jax.checkpoints.convert import Converted, convert
from sarathi_jax.checkpoints.loader import load_params
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.errors import CapacityError, ConfigError, ModelError, ModelNotFoundError
from sarathi_jax.models import FAMILIES, param_sources
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import ModelState, abstract_model
from sarathi_jax.sharding.rules import MEGATRON

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "attention_bias": True,
    "torch_dtype": "bfloat16",
}
MESHES = [{}, {"tensor": 4}, {"tensor": 8}, {"stage": 2, "tensor": 2}, {"expert": 2, "tensor": 2}]


def write_model(folder: Path, dtype: Any = np.float32, config_path: Path | None = None, **config: Any) -> Path:
    """Random weights as the safetensors library writes them: of a tiny Llama, or what another configuration asks for."""
    folder.mkdir()
    (folder / "config.json").write_text(config_path.read_text() if config_path else json.dumps(CONFIG | config))
    rng = np.random.default_rng(0)
    specs = [spec for source in param_sources(read_model_config(folder)).values() for spec in source.tensors]
    save_file({spec.name: rng.normal(size=spec.shape).astype(dtype) for spec in specs}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hugging-face") / "model", ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def converted(model: Path) -> Path:
    return convert(model, model.with_name("converted")).folder


@pytest.fixture
def copied(converted: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return shutil.copytree(converted, tmp_path / "copied")


def state_on(folder: Path, mesh: dict[str, int], dtype: str = "bfloat16") -> ModelState:
    return abstract_model(read_model_config(folder), np.dtype(dtype), make_mesh(mesh), MEGATRON)


def load(folder: Path, mesh: dict[str, int] | None = None, dtype: str = "bfloat16") -> dict[str, jax.Array]:
    state = state_on(folder, mesh or {}, dtype)
    return load_params(folder, read_model_config(folder), state.parameters, state.layout)


def check_same(got: dict[str, jax.Array], expected: dict[str, jax.Array]) -> None:
    """Bit for bit, and shard for shard."""
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        assert (got[path].sharding, got[path].dtype) == (array.sharding, array.dtype)
        for mine, shard in zip(got[path].addressable_shards, array.addressable_shards, strict=True):
            assert np.asarray(mine.data).tobytes() == np.asarray(shard.data).tobytes(), path


def nothing_beside(folder: Path) -> bool:
    return [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_reads_the_same_bits_from_either(model: Path, converted: Path, mesh: dict[str, int]) -> None:
    check_same(load(converted, mesh), load(model, mesh))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_parameters_come_through(tmp_path: Path, family: str) -> None:
    golden = sorted(
        (Path(__file__).parent.parent / "golden" / "data").glob(f"{family.replace('_', '?')}-*/config.json")
    )[0]
    model = write_model(tmp_path / "model", ml_dtypes.bfloat16, golden)
    converted = convert(model, tmp_path / "converted").folder
    check_same(load(converted), load(model))


def test_orbax_itself_restores_it_onto_a_mesh(model: Path, converted: Path) -> None:
    expected, mesh = load(model), make_mesh({"tensor": 4})
    struct = jax.ShapeDtypeStruct((24, 4, 4, 4), ml_dtypes.bfloat16, sharding=NamedSharding(mesh, P(None, "tensor")))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        whole = checkpointer.restore(converted / "orbax")
    with ocp.StandardCheckpointer() as checkpointer:
        placed = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), whole)
        placed["layers"]["1"]["attention"]["qkv"]["kernel"] = struct
        placed = checkpointer.restore(converted / "orbax", placed)
    flat = {".".join(each.key for each in keys): value for keys, value in jax.tree.leaves_with_path(placed)}
    assert flat.keys() == expected.keys()
    assert flat["layers.1.attention.qkv.kernel"].sharding == struct.sharding
    for path, value in expected.items():
        np.testing.assert_array_equal(flat[path], value, err_msg=path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_values_stay_what_they_are(tmp_path: Path, dtype: str) -> None:
    model = write_model(tmp_path / "model", dtype)
    done = convert(model, tmp_path / "converted")
    asked = "float32" if dtype == "float64" else dtype
    check_same(load(done.folder, dtype=asked), load(model, dtype=asked))
    num_parameters = 32 * 24 * 2 + 24 + 2 * (24 * 2 + 24 * 64 + 64 + 32 * 24 + 24 + 3 * 24 * 40)
    assert done == Converted(tmp_path / "converted", num_parameters, num_parameters * np.dtype(dtype).itemsize)


def test_a_tied_head_is_not_written(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", tie_word_embeddings=True)
    converted = convert(model, tmp_path / "converted").folder
    assert "head.kernel" not in load(converted)
    check_same(load(converted, {"tensor": 4}), load(model, {"tensor": 4}))


def test_another_dtype_is_written_and_said(model: Path, tmp_path: Path) -> None:
    converted = convert(model, tmp_path / "converted", dtype="float32").folder
    assert read_model_config(converted).dtype == "float32"
    check_same(load(converted, dtype="float32"), load(model, dtype="float32"))
    half = convert(model, tmp_path / "half", dtype="float16").folder
    assert read_model_config(half).dtype == "float16"
    again = convert(converted, tmp_path / "again", dtype="bfloat16").folder
    check_same(load(again), load(model))


def test_everything_beside_the_weights_comes_along_and_no_code(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    kept = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "LICENSE.txt"]
    for name in [*kept, "modeling.py", "model.safetensors.index.json", "secret.json"]:
        (model / name).write_text("{}")
    (model / "model.safetensors.index.json").unlink()
    (model / "secret.json").rename(tmp_path / "secret.json")
    (model / "secret.json").symlink_to(tmp_path / "secret.json")
    converted = convert(model, tmp_path / "converted").folder
    assert {path.name for path in converted.iterdir()} == {*kept, "config.json", "orbax"}


def test_interrupted_it_leaves_nothing_and_what_was_there_was_no_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = conversion._Parameter.read, []

    def interrupted(parameter: Any) -> np.ndarray:
        seen.append(parameter.path)
        if parameter.path == "layers.1.mlp.down.kernel":
            (half_written,) = tmp_path.iterdir()
            with pytest.raises(ModelNotFoundError, match=r"config\.json must be there"):
                find_model(half_written)
            raise KeyboardInterrupt
        return read(parameter)

    monkeypatch.setattr(conversion._Parameter, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "converted")
    assert len(seen) > 5
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_the_dtype_cannot_hold_is_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    tensors = {spec.name: np.full(spec.shape, 1e5, np.float32) for spec in all_specs(model)}
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ModelError, match=r"must fit into float16, got values up to 100000: load it as bfloat16 or"):
        convert(model, tmp_path / "converted", dtype="float16")
    assert nothing_beside(model)


def all_specs(model: Path) -> list[Any]:
    return [spec for source in param_sources(read_model_config(model)).values() for spec in source.tensors]


def test_a_destination_that_is_there_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "no such folder")
    with pytest.raises(ModelError, match=r"link must not be there yet"):
        convert(model, tmp_path / "link")
    with pytest.raises(
        ModelError, match=r"mine must not be there yet, got a folder or file of that name: remove it, or"
    ):
        convert(model, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(ModelError, match=r"must be in a folder that is there, got no folder .*nowhere: make it first"):
        convert(model, tmp_path / "nowhere" / "converted")


def test_a_full_disk_is_told_of_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        CapacityError, match=r"converted takes 0.0 GiB, got 0.0 GiB free on that disk: make room, choose"
    ):
        convert(model, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_is_one_error_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # the largest parameter has 3840 bytes
    try:
        with pytest.raises(
            ModelError, match=r"converted must be writable, got .*File too large.*: choose another place"
        ):
            convert(model, tmp_path / "converted")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_dtype_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"dtype must be one of float32, bfloat16, float16, got 'int8': choose one of"
    ):
        convert(model, tmp_path / "converted", dtype="int8")


def test_another_models_parameters_are_told_by_name(copied: Path) -> None:
    (copied / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1, "intermediate_size": 44}))
    message = r"copied/orbax: the weights must be those that config.json describes, got layers.0.mlp.gate_up.kernel\[24, 2, 40\] in place of \[24, 2, 44\]; "
    with pytest.raises(
        ModelError, match=message + r".*; extra layers.1.attention.*; and \d+ more: fetch the folder again"
    ):
        load(copied)


def test_a_newer_layout_is_refused(copied: Path) -> None:
    path = copied / "orbax" / "_METADATA"
    metadata = json.loads(path.read_text())
    assert metadata["custom_metadata"] == {"sarathi_jax_format": 1, "family": "llama"}
    path.write_text(json.dumps({**metadata, "custom_metadata": {"sarathi_jax_format": 2}}))
    with pytest.raises(
        ModelError, match=r"orbax: sarathi_jax_format must be 1, got 2: convert the model again with this"
    ):
        load(copied)


def test_an_incomplete_checkpoint_is_no_reason_to_read_something_else(copied: Path, model: Path) -> None:
    shutil.copy(model / "model.safetensors", copied)
    (copied / "orbax" / "_METADATA").unlink()
    with pytest.raises(
        ModelNotFoundError, match=r"copied/orbax must be an Orbax checkpoint of a tree, got no _METADATA"
    ):
        load(copied)


def test_devices_read_whole_chunks(converted: Path) -> None:
    """A chunk a head, a KV head; what is small enough is one."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(converted / "orbax").item_metadata
    attention = metadata["layers"]["0"]["attention"]
    assert attention["qkv"]["kernel"].storage.chunk_shape == (24, 1, 4, 4)
    assert attention["out"]["kernel"].storage.chunk_shape == (1, 4, 24)
    assert metadata["embedding"]["embedding"].storage.chunk_shape == (32, 24)


def test_nothing_is_compressed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    save_file({spec.name: np.zeros(spec.shape, np.float32) for spec in all_specs(model)}, model / "model.safetensors")
    done = convert(model, tmp_path / "converted")
    assert sum(path.stat().st_size for path in (done.folder / "orbax").rglob("d/*")) >= done.num_bytes


def test_no_more_is_read_ahead_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "READ_AHEAD_BYTES", 100)
    sizes, started = [40, 40, 40, 500, 10, 60, 50], list[int]()

    class Sized:
        def __init__(self, num_bytes: int) -> None:
            self.nbytes = num_bytes

        def read(self) -> np.ndarray:
            return np.zeros(self.nbytes, np.uint8)

    class Pool:
        """Reads at once."""

        def submit(self, read: Any) -> Future[np.ndarray]:
            future: Future[np.ndarray] = Future()
            future.set_result(read())
            started.append(future.result().nbytes)
            return future

    pool, parameters = cast(Any, Pool()), cast(Any, [Sized(size) for size in sizes])
    for number, array in enumerate(conversion._read_ahead(pool, parameters)):
        assert array.nbytes == sizes[number]
        assert sum(started[number:]) <= max(100, sizes[number])
        assert number != 4 or started[number:] == [10, 60]
    assert started == sizes
