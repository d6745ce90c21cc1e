"""What must be the same in all processes of a group before they run anything together: versions, options, and a model's files."""

import dataclasses
import hashlib
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from sarathi_jax.config import EngineConfig

PACKAGES = ("sarathi-jax", "jax", "jaxlib", "flax", "numpy")
# What may differ: where a process stands, and where its host keeps files.
OWN_OPTIONS = ("model", "rules", "process_id", "coordinator", "compile_cache", "profile")
# Of each file: blocks evenly spread over it. Other weights of the same shapes differ everywhere.
NUM_BLOCKS, BLOCK_BYTES = 64, 4096


def digest(text: str) -> str:
    """Short for a long fact."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def option_facts(config: EngineConfig) -> dict[str, str]:
    """Versions, and every option that is not the process's own."""
    versions = {f"version of {name}": _version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    names = [field.name for field in dataclasses.fields(config) if field.name not in OWN_OPTIONS]
    return versions | {name: repr(getattr(config, name)) for name in names}


def model_facts(config: object, weights: Sequence[Path]) -> dict[str, str]:
    """A model's configuration, and its weights' files by name, size and samples of what is in them."""
    return {"configuration of the model": digest(repr(config))} | {path.name: _file_fact(path) for path in weights}


def _file_fact(path: Path) -> str:
    size, hashed = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for block in range(NUM_BLOCKS):
            file.seek(max(size - BLOCK_BYTES, 0) * block // (NUM_BLOCKS - 1))
            hashed.update(file.read(BLOCK_BYTES))
    return f"{size} bytes, {hashed.hexdigest()[:16]}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
