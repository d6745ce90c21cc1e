"""Configurations as files, read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.models import ModelConfig

type ReadConfig = Callable[[dict[str, Any]], ModelConfig]


@pytest.fixture
def read_config(tmp_path: Path) -> ReadConfig:
    """The fields of a config.json -> what is read from it."""

    def read(values: dict[str, Any]) -> ModelConfig:
        (tmp_path / "config.json").write_text(json.dumps(values))
        return read_model_config(tmp_path)

    return read
