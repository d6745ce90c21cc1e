"""Blocks of what Orbax wrote, in each of its formats, are those of the arrays it was given; what is damaged is one error that names the folder."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from sarathi_jax.checkpoints.orbax_folder import OrbaxFolder
from sarathi_jax.errors import ModelError, ModelNotFoundError

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.kernel": RNG.normal(size=(6, 5, 8)).astype(np.float32),
    "a.bias": RNG.normal(size=8).astype(ml_dtypes.bfloat16),
    "b.0.counts": RNG.integers(0, 99, (3, 2), np.int32),
}
TREE = {"a": {"kernel": ARRAYS["a.kernel"], "bias": ARRAYS["a.bias"]}, "b": [{"counts": ARRAYS["b.0.counts"]}]}
FORMATS: list[dict[str, Any]] = [
    {},
    {"use_compression": False},
    {"use_zarr3": True},
    {"use_ocdbt": False},
    {"use_ocdbt": False, "use_zarr3": True},
]


def save(folder: Path, tree: Any, chunk_bytes: int | None = None, **options: Any) -> Path:
    args = ocp.args.PyTreeSave(tree, save_args=None if chunk_bytes is None else _each(tree, chunk_bytes))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(folder, args=args)
    return folder


def _each(tree: Any, chunk_bytes: int) -> Any:
    if isinstance(tree, dict):
        return {key: _each(value, chunk_bytes) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_each(value, chunk_bytes) for value in tree]
    return ocp.SaveArgs(chunk_byte_size=chunk_bytes)


@pytest.mark.parametrize("options", FORMATS, ids=str)
def test_blocks_are_those_of_the_arrays(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = OrbaxFolder(save(tmp_path / "tree", TREE, chunk_bytes=64, **options))
    assert folder.entries.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        entry = folder.entries[name]
        assert (entry.shape, entry.dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(folder.read(name), value, strict=True)
        index = tuple(slice(size // 3, size // 3 + size // 2) for size in value.shape)
        np.testing.assert_array_equal(folder.read(name, index), value[index], strict=True)
        np.testing.assert_array_equal(folder.read(name, index[:1]), value[index[:1]], strict=True)


def test_a_block_is_the_callers_own(tmp_path: Path) -> None:
    folder = OrbaxFolder(save(tmp_path / "tree", TREE, use_compression=False))
    block = folder.read("a.kernel")
    block[...] = 0
    np.testing.assert_array_equal(folder.read("a.kernel"), ARRAYS["a.kernel"])


def test_a_modules_variables_have_their_own_names(tmp_path: Path) -> None:
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(linear))
    folder = OrbaxFolder(tmp_path / "state")
    assert folder.entries.keys() == {"kernel", "bias"}
    np.testing.assert_array_equal(folder.read("kernel"), linear.kernel[...])


def test_what_is_no_array_is_passed_over(tmp_path: Path) -> None:
    tree = {"w": jnp.ones(3), "step": 3, "rate": 0.1, "name": "run", "none": None, "empty": {}}
    assert OrbaxFolder(save(tmp_path / "tree", tree)).entries.keys() == {"w"}


def one(folder: Path, pattern: str) -> Path:
    """The largest file of that name."""
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_size)


def test_a_folder_without_the_list_of_arrays_was_never_finished(tmp_path: Path) -> None:
    (save(tmp_path / "tree", TREE) / "_METADATA").unlink()
    with pytest.raises(
        ModelNotFoundError, match=r"tree must be an Orbax checkpoint of a tree, got no _METADATA in it: it"
    ):
        OrbaxFolder(tmp_path / "tree")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"tree_metadata": 3}'])
def test_a_broken_list_is_named(tmp_path: Path, content: bytes) -> None:
    (save(tmp_path / "tree", TREE) / "_METADATA").write_bytes(content)
    with pytest.raises(
        ModelError, match=r"tree: its list of arrays must be readable, got .*: the checkpoint is damaged"
    ):
        OrbaxFolder(tmp_path / "tree")


@pytest.mark.parametrize("damage", ["gone", "cut", "index"])
def test_broken_data_is_named_with_its_array(tmp_path: Path, damage: str) -> None:
    large = {"w": np.arange(65536, dtype=np.float32).reshape(256, 256)}
    save(tmp_path / "tree", large, use_compression=False)
    data = one(tmp_path / "tree", "d/*")
    if damage == "gone":
        data.unlink()
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-2000])
    else:
        (tmp_path / "tree" / "manifest.ocdbt").write_bytes(b"no index")
    message = (
        r"tree: (w\[256, 256\]|its list of arrays) must be readable, got ValueError: .*: the checkpoint is damaged"
    )
    with pytest.raises(ModelError, match=message):
        OrbaxFolder(tmp_path / "tree").read("w")


def test_a_missing_chunk_is_no_zeros(tmp_path: Path) -> None:
    folder = save(tmp_path / "tree", {"w": np.ones((8, 8), np.float32)}, chunk_bytes=64, use_ocdbt=False)
    sorted(path for path in (folder / "w").iterdir() if path.name != ".zarray")[0].unlink()
    with pytest.raises(ModelError, match=r"tree: w\[8, 8\] must be readable, got ValueError"):
        OrbaxFolder(folder).read("w")


def test_a_link_out_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    data = one(save(tmp_path / "tree", TREE), "d/*")
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"must lie in the checkpoint's own folder, got a link out of it: don't trust"):
        OrbaxFolder(tmp_path / "tree")


def test_what_orbax_calls_the_list_is_still_what_it_was(tmp_path: Path) -> None:
    """The folder is recognized by this file."""
    metadata = json.loads((save(tmp_path / "tree", TREE) / "_METADATA").read_text())
    assert len(metadata["tree_metadata"]) == len(ARRAYS)
