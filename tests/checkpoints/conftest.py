"""Writes small safetensors files by hand, whole and broken ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

type WriteFile = Callable[..., Path]


@pytest.fixture(scope="session")
def write_file() -> WriteFile:
    def write(path: Path, header: Any, data: bytes = b"", *, header_bytes: int | None = None) -> Path:
        """A file of 8 bytes of length, the header as JSON (or as it is, if bytes), and the data."""
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        length = len(text) if header_bytes is None else header_bytes
        path.write_bytes(length.to_bytes(8, "little") + text + data)
        return path

    return write
