"""Golden models as Hugging Face folders, written from the golden files' weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Golden:
    """What transformers computed for one model: `arrays` as generate.py names them, by prompt length."""

    folder: Path
    arrays: dict[str, np.ndarray]

    def lengths(self, kind: str) -> list[str]:
        """Prompts that have this kind of answer ("logits", "greedy")."""
        return [name.split("/")[1] for name in self.arrays if name.startswith(kind + "/")]

    def sequence(self, length: str) -> np.ndarray:
        """i32: a prompt, and its 64 greedy tokens if it has them."""
        return np.concatenate([self.arrays[f"prompt/{length}"], self.arrays.get(f"greedy/{length}", [])]).astype(
            np.int32
        )


@pytest.fixture(scope="session")
def make_golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Golden]:
    """Name of a tiny configuration -> its golden file and a model folder with its weights."""

    def make(name: str) -> Golden:
        with np.load(DATA / name / "golden.npz") as file:
            arrays = dict(file)
        weights = {key.removeprefix("weight/"): arrays.pop(key) for key in list(arrays) if key.startswith("weight/")}
        scale, folder = arrays.pop("weight_scale"), tmp_path_factory.mktemp(name)
        save_file(
            {key: value.astype(np.float32) * scale for key, value in weights.items()}, folder / "model.safetensors"
        )
        (folder / "config.json").write_text((DATA / name / "config.json").read_text())
        return Golden(folder, arrays)

    return make
