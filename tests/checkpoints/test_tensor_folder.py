"""One file or several with an index; shards only from the folder itself; no pickled weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sarathi_jax.checkpoints.tensor_folder import INDEX_NAME, SafetensorsFolder
from sarathi_jax.errors import ModelError, ModelNotFoundError

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)


def write_shards(folder: Path, weight_map: object) -> Path:
    save_file({"a": A}, folder / "model-1.safetensors")
    save_file({"b": B, "unlisted": B}, folder / "model-2.safetensors")
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))
    return folder


def test_one_file_is_a_folder_of_tensors(tmp_path: Path) -> None:
    save_file({"b": B, "a": A}, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert (folder.names, folder.shape("a")) == (("a", "b"), (2, 3))
    np.testing.assert_array_equal(folder.read("a", (slice(1, 2),)), A[1:2])


def test_shards_are_joined_by_their_index(tmp_path: Path) -> None:
    folder = SafetensorsFolder(write_shards(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"}))
    assert folder.names == ("a", "b")
    np.testing.assert_array_equal(folder.read("b"), B)


def test_shards_without_an_index_are_joined_too(tmp_path: Path) -> None:
    write_shards(tmp_path, {})
    (tmp_path / INDEX_NAME).unlink()
    assert SafetensorsFolder(tmp_path).names == ("a", "b", "unlisted")


def test_a_whole_model_stands_for_itself_whatever_lies_beside_it(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    save_file({"layers.0.a": A, "a": B}, tmp_path / "consolidated.safetensors")
    assert (SafetensorsFolder(tmp_path).names, SafetensorsFolder(tmp_path).shape("a")) == (("a",), (2, 3))


def test_a_tensor_in_two_files_is_named(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"a": A}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        ModelError, match=r"y\.safetensors: a tensor must be in one file only, got 'a' in .*x\.safetensors too"
    ):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "model-3.safetensors"},
            r"model-3\.safetensors must be in .*, got no such file: fetch the missing shard",
        ),
        ({"a": "model-2.safetensors"}, r"model-2\.safetensors must hold tensor 'a', got a file without it"),
        (
            {"a": "../model-1.safetensors"},
            r"a shard must be a file in the model's own folder, got '\.\./model-1\.safetensors'",
        ),
        ({"a": "/etc/passwd"}, "a shard must be a file in the model's own folder, got '/etc/passwd'"),
        ({"a": "sub/model-1.safetensors"}, "a shard must be a file in the model's own folder"),
        ({"a": ""}, "a shard must be a file in the model's own folder, got ''"),
        ({"a": ".."}, r"a shard must be a file in the model's own folder, got '\.\.'"),
        ({"a": 5}, "weight_map must map tensor names to file names"),
        (None, "weight_map must map tensor names to file names, got None"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, weight_map: object, message: str) -> None:
    write_shards(tmp_path, weight_map)
    with pytest.raises(ModelError, match=rf"^{tmp_path / INDEX_NAME}: {message}"):
        SafetensorsFolder(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    model, secret = tmp_path / "model", tmp_path / "secret.safetensors"
    model.mkdir()
    save_file({"a": A}, secret)
    (model / "model.safetensors").symlink_to(secret)
    with pytest.raises(ModelError, match="must lie in the model's own folder, got a link out of it"):
        SafetensorsFolder(model)
    (model / INDEX_NAME).write_text('{"weight_map": {"a": "model.safetensors"}}')
    with pytest.raises(ModelError, match="a shard must be a file in the model's own folder"):
        SafetensorsFolder(model)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    save_file({"a": A}, blobs / "abcd")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abcd")
    assert SafetensorsFolder(snapshot).names == ("a",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "model.pkl"])
def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch(mode=0o000)
    with pytest.raises(
        ModelError, match=rf"must hold weights as safetensors only, got {name}: .* save the model again"
    ):
        SafetensorsFolder(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"{tmp_path} must hold \*\.safetensors, got none: fetch the weights"):
        SafetensorsFolder(tmp_path)
