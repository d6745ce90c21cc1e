"""A model's name leads to one folder, or to an error that says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

import sarathi_jax
from sarathi_jax.checkpoints.hub import FETCHED_PATTERNS, resolve_model_folder
from sarathi_jax.errors import ModelError, ModelNotFoundError


def test_the_demo_lies_in_the_package_whatever_stands_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model_folder("demo") == Path(sarathi_jax.__file__).parent / "assets" / "demo"
    assert resolve_model_folder("./demo") == Path("demo")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model_folder(str(tmp_path)) == resolve_model_folder(tmp_path) == tmp_path


def test_a_snapshot_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("0123")
    script = "from sarathi_jax.checkpoints.hub import resolve_model_folder as f; print(f('org/tiny'))"
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(snapshot)


def test_without_network_a_hub_id_is_a_clear_error() -> None:
    with pytest.raises(
        ModelNotFoundError,
        match=r"'no-such-org/no-such-model' must be a folder here or a model on the hub .* check the name",
    ):
        resolve_model_folder("no-such-org/no-such-model")


@pytest.mark.parametrize(
    "name", ["no-such-folder", "/no/such/folder", "a/b/c", "https://huggingface.co/a/b", "", "a b/c"]
)
def test_a_name_that_is_no_model_is_a_clear_error(name: str) -> None:
    with pytest.raises(
        ModelNotFoundError,
        match=r"a model must be 'demo', a folder or a hub id such as 'org/model', got .*: check its path",
    ):
        resolve_model_folder(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=r"a model must be a folder, got the file .*: pass the folder it is in"):
        resolve_model_folder(tmp_path / "model.safetensors")


def test_neither_code_nor_pickles_are_fetched() -> None:
    assert not any(
        Path(name).match(pattern)
        for name in ("a.py", "pytorch_model.bin", "a.pt", "a.pkl")
        for pattern in FETCHED_PATTERNS
    )
